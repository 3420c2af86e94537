"""``python -m norm.check``: does the layer compute in this environment what it should?

Compares ``SyncBatchNorm`` with one process's BatchNorm over the joined batch, in a group of one and
in two processes that it starts, on the CPU and on a GPU where there is one. Prints one line per
check: PASS, or FAIL and the first difference. Exits with status 1 if a check failed. Two processes
talk by gloo, which lets them share one GPU.
"""

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import layer as layer_module
from .convert import convert_norm
from .groups import Group, exchange_locally, find_group, gather
from .layer import SyncBatchNorm

CHANNELS = 5
# Largest error, relative to the largest value where that is above 1.
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TIMEOUT = timedelta(seconds=60)
# The status of a process that has printed what failed.
CHECK_FAILED = 3

Call = Callable[[nn.Module, Tensor], Tensor]


class Difference(Exception):
    """What a check found: a value, by how much it is off, and the limit."""


def compare(
    rank: int,
    world: int,
    device: str,
    splits: tuple[int, ...] = (4, 3),
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    call: Call = nn.Module.__call__,
) -> None:
    """Compare two training steps of the layer with BatchNorm's over the joined batch.

    Args:
        rank: of this process.
        world: number of processes.
        device: of the layer; the reference is computed on the CPU in float64.
        splits: samples on each rank.
        dtype: of the input; the layer's parameters are float64 or float32.
        memory_format: of the input.
        call: calls the layer, for instance compiled.

    Raises:
        Difference: a value is off by more than its dtype allows.
    """
    splits = splits[:world]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    expected = nn.BatchNorm2d(CHANNELS, dtype=torch.float64)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(randn(CHANNELS))
    layer = copy.deepcopy(expected).to(device)
    layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
    convert_norm(layer, "sync_bn", impl="own")
    differences: list[str] = []
    for _ in range(2):
        joined, factor = randn(2, sum(splits), CHANNELS, 3, 4).to(dtype).unbind()
        joined = joined * 3 + 2
        x = joined.split(splits)[rank].to(device, memory_format=memory_format).requires_grad_()
        layer.zero_grad()
        y = call(layer, x)
        y.backward(factor.split(splits)[rank].to(device))
        whole = joined.double().requires_grad_()
        expected.zero_grad()
        want = expected(whole)
        want.backward(factor.double())

        found = {"output": (y, want.split(splits)[rank])}
        found["gradient of the input"] = (x.grad, whole.grad.split(splits)[rank])
        for name, parameter in expected.named_parameters():
            grad = layer.get_parameter(name).grad.clone()
            dist.all_reduce(grad)
            found[f"gradient of {name}"] = (grad, parameter.grad)
        for name, buffer in expected.named_buffers():
            found[name] = (layer.get_buffer(name), buffer)
        for name, (got, reference) in found.items():
            differences.append(_difference(name, got, reference, LIMITS[dtype]))
    for name, buffer in layer.named_buffers():
        everyone = [torch.empty_like(buffer) for _ in range(world)]
        dist.all_gather(everyone, buffer)
        if not all(torch.equal(one, everyone[0]) for one in everyone):
            differences.append(f"{name} is not the same to the bit on all ranks")
    # Only now, after the last collective: a rank that left alone would leave the others waiting.
    _raise_first(differences)


def _difference(name: str, got: Tensor, want: Tensor, limit: float) -> str:
    """What differs, in words, or ""."""
    if got.shape != want.shape:
        return f"{name} has shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if not got.numel():
        return ""
    got, want = got.detach().cpu().double(), want.detach().double()
    off = ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()
    return "" if off <= limit else f"{name} is off by {off:.1e}, more than {limit:.0e}"  # or NaN


def _raise_first(differences: list[str]) -> None:
    for difference in filter(None, differences):
        raise Difference(difference)


def float64(rank: int, world: int, device: str) -> None:
    """Eager, in float64."""
    compare(rank, world, device, dtype=torch.float64)


def float32(rank: int, world: int, device: str) -> None:
    """Eager, in float32, both memory formats."""
    compare(rank, world, device)
    compare(rank, world, device, memory_format=torch.channels_last)


def half_precision(rank: int, world: int, device: str) -> None:
    """Eager, input in bfloat16 and float16."""
    compare(rank, world, device, dtype=torch.bfloat16)
    compare(rank, world, device, dtype=torch.float16)


def empty_rank(rank: int, world: int, device: str) -> None:
    """Rank 1 has no samples."""
    compare(rank, world, device, splits=(4, 0))


def compiled(rank: int, world: int, device: str) -> None:
    """As ``torch.compile`` traces it, and as it differentiates it; without code generation."""
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        function = torch.compile(nn.Module.__call__, backend=backend, fullgraph=True)
        compare(rank, world, device, dtype=torch.float64, call=function)


def compiled_on_one_rank(rank: int, world: int, device: str) -> None:
    """Rank 0 compiled, the others eager, as where one rank's compiler gives up."""
    torch._dynamo.reset()
    function = torch.compile(nn.Module.__call__, backend="aot_eager", fullgraph=True)
    call = nn.Module.__call__ if rank else function
    compare(rank, world, device, dtype=torch.float64, call=call)


def checkpointed(rank: int, world: int, device: str) -> None:
    """Activation checkpointing moves the statistics once."""
    for reentrant in (False, True):

        def call(layer: nn.Module, x: Tensor, reentrant: bool = reentrant) -> Tensor:
            return checkpoint(layer, x, use_reentrant=reentrant)

        compare(rank, world, device, dtype=torch.float64, call=call)


def second_derivatives(rank: int, world: int, device: str) -> None:
    """The gradient of the squared gradient."""
    joined = torch.randn(
        (7, CHANNELS, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    splits = (7,) if world == 1 else (4, 3)
    x = joined.split(splits)[rank].to(device).requires_grad_()
    whole = joined.clone().requires_grad_()
    results = []
    layers = (SyncBatchNorm(CHANNELS, device=device).double(), nn.BatchNorm1d(CHANNELS).double())
    for layer, values in zip(layers, (x, whole), strict=True):
        (grad,) = torch.autograd.grad(layer(values).sin().sum(), values, create_graph=True)
        results += torch.autograd.grad(grad.square().sum(), values)
    want = results[1].split(splits)[rank]
    _raise_first([_difference("second derivative", results[0], want, 1e-10)])


def direct_exchange(rank: int, world: int, device: str) -> None:
    """Processes of one host that exchange rows by sockets, where the CPU does: gloo's bits."""
    group, row = find_group(None), torch.randn(129)
    by_gloo = gather(row, group)
    if not exchange_locally():
        return
    try:
        same = torch.equal(gather(row, group), by_gloo)
        compare(rank, world, device)
        _raise_first(["" if same else "the rows are not gloo's"])
    finally:
        exchange_locally(False)


ALONE = (float64, float32, half_precision, compiled, checkpointed, second_derivatives)
CHECKS = {1: ALONE, 2: (*ALONE, empty_rank, compiled_on_one_rank, direct_exchange)}


def run(rank: int, world: int, device: str, folder: str) -> None:
    """Run the checks of one group on one device; rank 0 prints.

    Args:
        rank: of this process.
        world: number of processes.
        device: "cpu" or "cuda".
        folder: where the processes find each other.

    Raises:
        SystemExit: a check failed.
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if device == "cuda" and world == 1 else "gloo",
        init_method=f"file://{folder}/{device}{world}",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT,
    )
    failed = False
    # A group of one would run as plain BatchNorm.
    alone = Group(dist.group.WORLD.group_name, 1)
    forced = mock.patch.object(layer_module, "find_group", lambda name: alone)
    try:
        if world == 1:
            forced.start()
        for check in CHECKS[world]:
            torch.manual_seed(0)
            try:
                check(rank, world, device)
                found = ""
            except Difference as difference:
                found = str(difference)
            except Exception as error:
                found = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            everyone = [""] * world
            dist.all_gather_object(everyone, found)
            failures = [f"rank {number}: {text}" for number, text in enumerate(everyone) if text]
            failed = failed or bool(failures)
            if rank == 0:
                outcome = f"FAIL ({failures[0]})" if failures else "PASS"
                name = check.__name__.replace("_", " ")
                print(
                    f"{device}, {world} process{'es'[: 2 * world - 2]}, {name}: {outcome}",
                    flush=True,
                )
    finally:
        if world == 1:
            forced.stop()
        dist.destroy_process_group()
    if failed:
        raise SystemExit(CHECK_FAILED)


def main() -> None:
    """Run every check; the exit status says whether all passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--devices", nargs="+", choices=["cpu", "cuda"], default=devices)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        for device in options.devices:
            for world in CHECKS:
                try:
                    mp.spawn(run, (world, device, folder), world)
                except mp.ProcessExitedException as error:
                    passed = False
                    if error.exit_code != CHECK_FAILED:  # whose lines say why
                        print(f"{device}, {world} processes: FAIL ({error})", flush=True)
                except mp.ProcessRaisedException as error:
                    passed = False
                    print(f"{device}, {world} processes: FAIL ({error})", flush=True)
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
