"""Several GPUs from one process: copy this file into a project and wrap the model.

    model = CudaMultiGPU(Net())         # all GPUs, the one GPU, or the CPU
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in loader:       # may stay on the CPU: a call moves its inputs
        logits = model(images)          # each GPU computes its part of the batch
        loss = F.cross_entropy(logits, labels.to(model.device))
        loss.backward()
        ...
    torch.save(model.state_dict(), "net.pt")    # the plain network's names, no "module."

The rest of the script stays as it is. The work is done by ``torch.nn.DataParallel``; the wrapper
keeps the model's interface and refuses what DataParallel gets wrong.

**A loss inside the model.** If ``forward`` returns the loss, several GPUs return a vector with one
loss each. ``loss.mean().backward()`` works for any number of GPUs. It weighs the GPUs equally, so
drop a last batch that does not divide evenly (``drop_last=True``).

**When to move on.** DataParallel copies the network to every GPU in every step, drives all of them
from the threads of one Python process, and gathers the outputs on the first. BatchNorm uses the
statistics of each GPU's own part of the batch, and only the first GPU's running statistics are
kept. DataParallel cannot synchronise them. Use one process per GPU (DistributedDataParallel,
Accelerate) when

- only a few samples fit on a GPU: that needs SyncBatchNorm;
- the GPUs wait for Python, for the first GPU or for the copies;
- there is more than one machine.

The tests use no GPU and a stand-in for several. The file has not been run on several GPUs.
"""

import functools
import os
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

# With fewer samples per GPU the error of a network with BatchNorm rises
# (https://arxiv.org/abs/1803.08494, figure 1).
LEAST_PER_GPU = 16


class CudaMultiGPU:
    """A model on all CUDA devices, on the only one, or on the CPU, with the model's interface.

    A call splits tensors along their first dimension over the devices and gathers the outputs on
    the first. Everything else is the model's own: parameters, methods, attributes (also setting
    them) and ``model[0]``. Methods run on the first device only, and their inputs are not moved.
    ``to`` and its relatives change the type, but refuse to change the device. Functions that
    require an ``nn.Module``, such as ``torch.compile`` and ``AveragedModel``, take ``.model``.

    A pickle or copy keeps the model and ``device_ids``, and looks for the devices anew. For other
    machines, save ``state_dict()`` instead.

    Args:
        model: the network; it is moved to the first device.
        device_ids: CUDA devices, such as ``[0, 1]`` or ``["cuda:1"]``; None for all that are
            visible, ``[]`` for the CPU.

    Attributes:
        model: the network itself.
        device: holds the parameters and the outputs.
        device_ids: indices of the CUDA devices in use.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, or is wrapped already.
        ValueError: a device does not exist or is named twice, or the model has SyncBatchNorm and
            there are several devices; later, the model is to be moved to another device.

    Warns:
        UserWarning: the model has BatchNorm and there are several devices.
    """

    model: nn.Module
    device: torch.device
    device_ids: list[int]

    def __init__(
        self,
        model: nn.Module,
        device_ids: Sequence[int | str | torch.device] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"CudaMultiGPU takes an nn.Module, not {type(model).__name__}.")
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TypeError(
                f"The model is already wrapped in {type(model).__name__}: give CudaMultiGPU its "
                ".module."
            )
        ids = _cuda_devices(device_ids)
        if len(ids) > 1:
            _check_norm(model)
        device = torch.device("cuda", ids[0]) if ids else torch.device("cpu")
        model.to(device)
        # With one device, DataParallel moves the inputs there and calls the model itself.
        run = nn.DataParallel(model, device_ids=ids) if ids else model
        # Not setattr, which is the model's.
        self.__dict__.update(
            model=model, device=device, device_ids=ids, _asked=device_ids, _run=run
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for a batch, on ``device``."""
        return self._run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """The model's attribute; methods that return the model (``train()``) return the wrapper."""
        if name in OWN:
            raise AttributeError(name)  # not yet set: __init__ raised an error
        value = getattr(self.model, name)
        if not isinstance(value, types.MethodType) or value.__self__ is not self.model:
            return value

        @functools.wraps(value)
        def method(*args: Any, **kwargs: Any) -> Any:
            if name in MOVES:
                _refuse_to_move(self.model, name, args, kwargs)
            result = value(*args, **kwargs)
            return self if result is self.model else result

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            raise AttributeError(f"{name} can't be changed: wrap the model anew.")
        setattr(self.model, name, value)

    def __delattr__(self, name: str) -> None:
        if name in OWN:
            raise AttributeError(f"{name} can't be deleted.")
        delattr(self.model, name)

    # Python looks these up on the class, never through __getattr__.

    def __len__(self) -> int:
        return len(self.model)

    def __bool__(self) -> bool:
        return bool(self.model)  # True for a network without a length

    def __getitem__(self, key: Any) -> Any:
        return self.model[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.model)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.model)})

    def __repr__(self) -> str:
        devices = [f"cuda:{index}" for index in self.device_ids] or ["cpu"]
        return f"CudaMultiGPU({', '.join(devices)}: {self.model!r})"

    def __reduce__(self) -> tuple:
        return type(self), (self.model, self._asked)


OWN = ("model", "device", "device_ids", "_asked", "_run")
MOVES = ("to", "to_empty", "cpu", "cuda", "xpu")


def recommended_num_workers(gpus: int | None = None) -> int:
    """CPU cores per GPU, at least 1: loader workers for a process that feeds one GPU.

    It counts the cores that this process may use, within a container's CPU limit. CudaMultiGPU
    feeds all its GPUs from one loader, which may have all cores: ``recommended_num_workers(1)``.

    Args:
        gpus: number of GPUs that share the cores; None for all that are visible.

    Raises:
        ValueError: ``gpus`` is below 1.
    """
    if gpus is None:
        gpus = max(1, torch.cuda.device_count())
    if gpus < 1:
        raise ValueError(f"{gpus} GPUs can't share cores: pass at least 1.")
    return max(1, usable_cores() // gpus)


def usable_cores(cgroup: str = "/sys/fs/cgroup") -> int:
    """Cores that this process may use, by its affinity and its container's limit (cgroup v2).

    Args:
        cgroup: folder that holds the limit, ``cpu.max``.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        # Microseconds of computing per period: "200000 100000" is two cores, "max 100000" all.
        quota, period = map(int, Path(cgroup, "cpu.max").read_text().split())
    except (OSError, ValueError):
        return cores
    return max(1, min(cores, quota // period))


def batch_size_hint(
    batch_size: int, gpus: int | None = None, least: int = LEAST_PER_GPU
) -> tuple[int, str]:
    """A batch size that suits the GPUs, and the reason.

    Args:
        batch_size: of the whole batch, which the GPUs share.
        gpus: number of GPUs; None for all that are visible.
        least: samples per GPU below which BatchNorm's statistics are too noisy; 1 for a network
            without BatchNorm.

    Returns:
        The smallest size from ``batch_size`` on that divides evenly and has ``least`` samples per
        GPU, and a sentence with the reason.

    Raises:
        ValueError: a number is below 1.
    """
    if gpus is None:
        gpus = max(1, torch.cuda.device_count())
    if min(batch_size, gpus, least) < 1:
        raise ValueError("batch_size, gpus and least must be at least 1.")
    each = max(least, -(-batch_size // gpus))
    size, plural = each * gpus, "" if gpus == 1 else "s"
    if size == batch_size:
        return size, f"{size} is fine: {each} on each of {gpus} GPU{plural}."
    if each == least > 1:
        instead = "SyncBatchNorm in one process per GPU" if gpus > 1 else "GroupNorm"
        reason = (
            f"BatchNorm sees one GPU's samples only and needs {least} on each of {gpus} "
            f"GPU{plural}; if they don't fit, train with {instead}."
        )
    else:
        reason = f"it divides evenly over {gpus} GPU{plural}, {each} on each."
    return size, f"Use {size} rather than {batch_size}: {reason}"


def _cuda_devices(asked: Sequence[int | str | torch.device] | None) -> list[int]:
    """Indices of the CUDA devices asked for; of all that are visible for None."""
    count = torch.cuda.device_count()
    if asked is None:
        return list(range(count))
    ids = []
    for device in asked:
        kind, index = "cuda", device
        if not isinstance(device, int):
            parsed = torch.device(device)
            kind, index = parsed.type, parsed.index or 0
        if kind != "cuda" or not 0 <= index < count:
            raise ValueError(
                f"device_ids names {device}, which is none of the {count} CUDA devices of this "
                "machine: leave device_ids out to use all of them, or the CPU if there are none."
            )
        ids.append(index)
    if len(set(ids)) < len(ids):
        raise ValueError(f"device_ids names a device twice: {ids}; name each once.")
    return ids


def _refuse_to_move(model: nn.Module, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse to move the model: DataParallel would look for it in the old place."""
    probe = nn.Module()
    for tensor in (*model.parameters(), *model.buffers()):
        probe.register_buffer("tensor", torch.zeros((), device=tensor.device))
        getattr(probe, name)(*args, **kwargs)
        if probe.tensor.device != tensor.device:
            raise ValueError(
                f"{name} would move the model from {tensor.device} to {probe.tensor.device}: wrap "
                "it anew to change devices, by CudaMultiGPU(model.model, device_ids=...)."
            )
        return


def _check_norm(model: nn.Module) -> None:
    """Refuse SyncBatchNorm, and warn of BatchNorm, on several devices."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if "SyncBatchNorm" in kinds:
        raise ValueError(
            "The model has SyncBatchNorm, which DataParallel never synchronises: train it in one "
            "process per GPU (accelerate launch), or use plain BatchNorm here."
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        warnings.warn(
            "BatchNorm uses the statistics of each GPU's own part of the batch and keeps only the "
            f"first GPU's running statistics: give each GPU at least {LEAST_PER_GPU} samples, or "
            "train with SyncBatchNorm in one process per GPU (accelerate launch).",
            stacklevel=3,
        )
