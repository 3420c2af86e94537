"""Several GPUs from one process: copy this file into a project and wrap the model.

    model = CudaMultiGPU(Net())         # all GPUs, the one GPU, or the CPU
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in loader:       # may stay on the CPU: a call moves its inputs
        logits = model(images)          # each GPU computes its part of the batch
        loss = F.cross_entropy(logits, labels.to(model.device))
        loss.backward()
        ...
    torch.save(model.state_dict(), "net.pt")    # the plain network's names, no "module."

The rest of the script stays as it was. Underneath is `torch.nn.DataParallel`, its usual snags seen
to.

**A loss inside the model.** Where `forward` returns the loss, several GPUs return a vector with one
loss each. `loss.mean().backward()` suits any number of GPUs. It weighs the GPUs equally: a batch
that does not divide evenly is better dropped (`drop_last=True`).

**When to move on.** DataParallel copies the network to every GPU in every step, drives all of them
from one Python thread pool, and gathers the outputs on the first. BatchNorm normalises with each
GPU's own part of the batch, and only the first GPU's running statistics are kept. DataParallel
cannot synchronise them. So take one process per GPU (DistributedDataParallel, Accelerate) when

- only a few samples fit on a GPU: that needs SyncBatchNorm;
- the GPUs wait for Python, for the first GPU or for the copies;
- there is more than one machine.

Tested without a GPU and with a stand-in for several: it has not yet been run on several GPUs.
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

# Below 16 samples the error of a network with BatchNorm begins to rise
# (https://arxiv.org/abs/1803.08494).
LEAST_PER_GPU = 16


class CudaMultiGPU:
    """A model on every CUDA device, on the one there is, or on the CPU, with the model's interface.

    Calling it splits tensors along their first dimension over the devices and gathers the outputs
    on the first. Everything else is the model's own: parameters, methods, attributes, also setting
    them, and `model[0]`. A method other than a call runs on the first device only, with inputs as
    they are given. `to` and the like change the type, but not the device.
    What checks for an `nn.Module`, such as `torch.compile` and `AveragedModel`, takes `.model`.

    Pickling and copying it keep the model and `device_ids`, and look for the devices anew. A file
    for other machines is better made from `state_dict()`.

    Args:
        model: the network; it is moved to the first device.
        device_ids: CUDA devices, such as `[0, 1]` or `["cuda:1"]`; None for all that are visible,
            `[]` for the CPU.

    Attributes:
        model: the network itself.
        device: where the parameters are and the outputs arrive.
        device_ids: indices of the CUDA devices in use.

    Raises:
        TypeError: `model` is no `nn.Module`, or is wrapped already.
        ValueError: a device that does not exist or is named twice, or SyncBatchNorm on several;
            moving the model to another device.

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
        """The model's output for a batch, on `device`."""
        return self._run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """The model's attribute or method; what returns the model (`train()`) returns this."""
        if name in OWN:
            raise AttributeError(name)  # not yet set: __init__ has raised
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
            raise AttributeError(f"{name} can't be changed; wrap the model anew.")
        setattr(self.model, name, value)

    def __delattr__(self, name: str) -> None:
        if name in OWN:
            raise AttributeError(f"{name} can't be deleted.")
        delattr(self.model, name)

    # Python looks these up on the class, never through __getattr__.

    def __len__(self) -> int:
        return len(self.model)

    def __bool__(self) -> bool:
        return bool(self.model)  # of a network without a length, True

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

    Counted are the cores that this process may use, within a container's CPU limit. CudaMultiGPU
    feeds all its GPUs from one loader, which may have all cores: `recommended_num_workers(1)`.

    Args:
        gpus: how many share the cores; None for all that are visible.

    Raises:
        ValueError: `gpus` is below 1.
    """
    if gpus is None:
        gpus = max(1, torch.cuda.device_count())
    if gpus < 1:
        raise ValueError(f"{gpus} GPUs can't share cores; give at least 1.")
    return max(1, usable_cores() // gpus)


def usable_cores(cgroup: str = "/sys/fs/cgroup") -> int:
    """Cores that this process may use: its affinity, and its container's limit (cgroup v2).

    Args:
        cgroup: folder that holds the limit, `cpu.max`.
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
    """The batch size to take instead of `batch_size`, if any, and the reason.

    Args:
        batch_size: of the whole batch, that the GPUs share.
        gpus: how many; None for all that are visible.
        least: samples per GPU, below which BatchNorm's statistics are too noisy; 1 for a network
            without BatchNorm.

    Returns:
        The smallest size from `batch_size` that divides evenly and has `least` samples per GPU, and
        a sentence that says so.

    Raises:
        ValueError: a number below 1.
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
            f"BatchNorm sees one GPU's samples only and wants {least} on each of {gpus} "
            f"GPU{plural}; if they don't fit, train with {instead}."
        )
    else:
        reason = f"it divides evenly over {gpus} GPU{plural}, {each} on each."
    return size, f"Take {size} rather than {batch_size}: {reason}"


def _cuda_devices(asked: Sequence[int | str | torch.device] | None) -> list[int]:
    """Indices of the CUDA devices asked for, all that are visible for None."""
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
                "machine; leave device_ids out to use all of them, or the CPU where there is none."
            )
        ids.append(index)
    if len(set(ids)) < len(ids):
        raise ValueError(f"device_ids names a device twice: {ids}.")
    return ids


def _refuse_to_move(model: nn.Module, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Refuse a move of the model, after which DataParallel would look for it in the old place."""
    probe = nn.Module()
    for tensor in (*model.parameters(), *model.buffers()):
        probe.register_buffer("tensor", torch.zeros((), device=tensor.device))
        getattr(probe, name)(*args, **kwargs)
        if probe.tensor.device != tensor.device:
            raise ValueError(
                f"{name} would move the model from {tensor.device} to {probe.tensor.device}: wrap "
                "it anew to change devices, CudaMultiGPU(model.model, device_ids=...)."
            )
        return


def _check_norm(model: nn.Module) -> None:
    """What normalises with a GPU's own part of the batch: refused or warned about."""
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if "SyncBatchNorm" in kinds:
        raise ValueError(
            "The model has SyncBatchNorm, which DataParallel never synchronises: train it in one "
            "process per GPU (accelerate launch), or keep plain BatchNorm here."
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        warnings.warn(
            "BatchNorm normalises with each GPU's own part of the batch and keeps the first GPU's "
            f"running statistics: give each GPU at least {LEAST_PER_GPU} samples, or train with "
            "SyncBatchNorm in one process per GPU (accelerate launch).",
            stacklevel=3,
        )
