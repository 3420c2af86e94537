"""What synchronising costs: time of a whole training step, SyncBatchNorm over plain BatchNorm.

    python benchmarks/syncbn.py                     two gloo processes on CPU, eager
    python benchmarks/syncbn.py --compile           the same, compiled
    python benchmarks/syncbn.py --device cuda       one GPU, the synchronised path forced

A step is forward, backward and SGD in DDP, 2 samples per process. All variants take turns, a few
steps each, for many rounds, so that whatever else the machine does falls on all of them. Two ratios
to plain BatchNorm are printed: the median over the rounds, with its middle half, and that of the
fastest tenth of the steps, which a machine busy with other things disturbs least.

    bn          plain BatchNorm
    own         this project's SyncBatchNorm, as the scripts run it: on CPU by sockets where eager
    own_gloo    the same by gloo, as between machines (CPU, eager)
    all_reduce  what detectron2's NaiveSyncBatchNorm does: means of x and x², all-reduced
    torch       torch.nn.SyncBatchNorm (CUDA only)

The CUDA part has not yet been run on GPUs.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))

from norm import COMPILE_OPTIONS, convert_norm, exchange_locally
from norm.groups import Group, SumOverRanks, find_group


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The network and the shape of one sample."""
    if name == "resnet18":
        from torchvision.models import resnet18

        return resnet18(num_classes=100), (3, 128, 128)
    if name == "resnet50":
        from torchvision.models import resnet50

        return resnet50(num_classes=100), (3, 224, 224)
    if name == "unet":
        from models.segmentation import build_segmentation_model

        return build_segmentation_model("unet", 11), (3, 128, 128)
    from torchvision.models.video import r3d_18

    return r3d_18(num_classes=50), (3, 8, 56, 56)


class AllReduceBatchNorm(_BatchNorm):
    """The usual way by hand: E[x] and E[x²] averaged over ranks, for equal batches only."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        axes = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        moments = torch.cat([input.mean(axes), (input * input).mean(axes)])
        group = find_group(None)
        mean, square = (SumOverRanks.apply(moments, group) / group.size).chunk(2)
        var = square - mean * mean
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var - self.running_var)
        scale = self.weight * (var + self.eps).rsqrt()
        return input * scale.view(shape) + (self.bias - mean * scale).view(shape)


def variant(model: nn.Module, kind: str) -> nn.Module:
    """A copy of the model with this kind of normalisation."""
    model = copy.deepcopy(model)
    if kind in ("own", "own_gloo", "torch"):
        return convert_norm(model, "sync_bn", impl=kind.partition("_")[0])[0]
    if kind == "all_reduce":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = AllReduceBatchNorm
    return model


class Stepper:
    """One variant in training: `run(n)` does n steps and returns the seconds of each."""

    def __init__(self, model: nn.Module, x: Tensor, compiled: bool):
        model = model.to(x.device)
        if compiled:
            model = torch.compile(model, fullgraph=True, options=COMPILE_OPTIONS)
        with warnings.catch_warnings():  # torch 2.15 prefers another name, which 2.11 lacks
            warnings.simplefilter("ignore", FutureWarning)
            self.model = DistributedDataParallel(model, broadcast_buffers=False)
        self.x = x
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(self) -> None:
        """One training step."""
        y = self.model(self.x)
        y = y["out"] if isinstance(y, dict) else y
        self.optimizer.zero_grad()
        y.square().mean().backward()
        self.optimizer.step()

    def run(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps."""
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.step()
            if self.x.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds


def backend(device: str) -> str:
    """What the processes talk by."""
    return "nccl" if device == "cuda" else "gloo"


def measure(rank: int, options: argparse.Namespace, folder: str) -> None:
    """One rank: every network, every variant in turn; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        backend(options.device),
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=options.processes,
    )
    device = torch.device(options.device)
    kinds = ["bn", "own", "all_reduce"]
    kinds += ["torch"] if device.type == "cuda" else ["own_gloo"]
    if options.compile:
        kinds = ["bn", "own"]  # torch's doesn't compile to one graph
    by_sockets = device.type == "cpu" and not options.compile
    for name in options.nets:
        torch.manual_seed(0)
        model, shape = build(name)
        x = torch.randn(options.batch_size, *shape, device=device)
        steppers = {kind: Stepper(variant(model, kind), x, options.compile) for kind in kinds}
        for kind, stepper in steppers.items():
            exchange_locally(by_sockets and kind == "own")
            stepper.run(3)
        rounds = []
        for turn in range(options.rounds):
            order = kinds if turn % 2 else kinds[::-1]
            seconds = {}
            for kind in order:
                exchange_locally(by_sockets and kind == "own")
                dist.barrier()
                seconds[kind] = steppers[kind].run(options.steps)
            rounds.append(seconds)
        if rank == 0:
            report(name, rounds, kinds, options.compile)
    if device.type == "cuda":
        count_on_gpu(options)
    dist.barrier()
    dist.destroy_process_group()


def report(
    name: str, rounds: list[dict[str, list[float]]], kinds: list[str], compiled: bool
) -> None:
    """One table row per variant: fastest tenth of the steps, median round, both over bn's."""

    def fastest(kind: str) -> float:
        steps = sorted(second for seconds in rounds for second in seconds[kind])
        return statistics.mean(steps[: max(1, len(steps) // 10)])

    for kind in kinds:
        ratios = [sum(seconds[kind]) / sum(seconds["bn"]) for seconds in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        mode = "compiled" if compiled else "eager"
        print(
            f"| {name} | {mode} | {kind} | {1e3 * fastest(kind):.0f} ms "
            f"| {fastest(kind) / fastest('bn'):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )


def count_on_gpu(options: argparse.Namespace) -> None:
    """One GPU, the synchronised path forced: launches and host syncs of one layer's step."""
    kinds = ("bn", "own", "torch")
    x = torch.randn(options.batch_size, 64, 56, 56, device="cuda", requires_grad=True)
    for kind in kinds:
        layer = variant(nn.Sequential(nn.BatchNorm2d(64)), kind).cuda()

        def step(layer=layer):
            layer(x).sum().backward()

        for _ in range(3):
            step()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            torch.cuda.synchronize()
        kernels = sum(1 for event in profile.events() if event.device_type.name == "CUDA")
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        syncs = sum("synchroniz" in str(warning.message) for warning in caught)
        print(f"| {kind} | {kernels} launches | {syncs} host syncs |", flush=True)


def forced_torch_forward(layer: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """torch's synchronised path, which it leaves in a group of one."""
    from torch.nn.modules._functions import SyncBatchNorm

    return SyncBatchNorm.apply(
        x,
        layer.weight,
        layer.bias,
        layer.running_mean,
        layer.running_var,
        layer.eps,
        layer.momentum,
        dist.group.WORLD,
        1,
    )


@contextmanager
def forced_paths() -> Iterator[None]:
    """In one process, what every variant does in several."""
    with ExitStack() as patches:
        for module in ("norm.layer", __name__):
            one = mock.patch(f"{module}.find_group", lambda name: Group("0", 1))
            patches.enter_context(one)
        patches.enter_context(mock.patch.object(nn.SyncBatchNorm, "forward", forced_torch_forward))
        yield


def main() -> None:
    """Parse, launch, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", nargs="+", default=["resnet18", "unet", "r3d18"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=2, help="per process")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="of one variant before the next")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    # As accelerate launch sets it: a thread per process.
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| network | mode | variant | fastest steps | over bn | median round over bn |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if options.device == "cpu":
            mp.spawn(measure, (options, folder), options.processes)
            return
        options.processes = 1
        with forced_paths():
            measure(0, options, folder)


if __name__ == "__main__":
    main()
