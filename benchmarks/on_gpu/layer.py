"""Checks of SyncBatchNorm that ``python -m norm.check`` doesn't make.

    python -m benchmarks.on_gpu.layer --device cuda kernels group_of_one three_processes

Prints a JSON line per check.
"""

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.on_gpu.result import Failed, needs_gpu, run_check
from benchmarks.syncbn import backend, forced_paths
from norm import SyncBatchNorm, check, convert_norm, fused, kernels

EPS = 1e-3
MOMENTUM = 0.25
# Largest error of outputs and gradients, relative to the largest value possible, by input dtype.
LIMITS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1.5e-3}
# Of statistics, which are float32 for all shorter dtypes.
STATISTICS_LIMIT = 1e-5
# One sample: (C, ...).
SHAPES = ((5,), (64, 9), (64, 14, 14), (130, 5, 3), (2048, 7, 7), (3, 1, 1), (16, 2, 6, 5))
# Samples on each emulated rank.
SPLITS = {"even": (4, 4), "uneven": (1, 5), "one empty": (3, 0, 1)}
# The memory format of each layout, by the number of dimensions.
LAYOUTS = {
    "contiguous": dict.fromkeys((2, 3, 4, 5), torch.contiguous_format),
    "channels_last": {4: torch.channels_last},
    "channels_last_3d": {5: torch.channels_last_3d},
}


def error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The largest difference over ``scale``, or over the largest expected value."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    if not torch.isfinite(found).all():
        return float("inf")
    scale = expected.abs().max() if scale is None else scale
    return ((found - expected).abs().max() / scale.clamp(min=1e-6)).item()


def require(errors: dict[str, float], limit: float, where: str = "") -> None:
    """Raise ``Failed`` for the first error above its limit, also where it is NaN."""
    for name, value in errors.items():
        if not value <= limit:
            raise Failed(f"{name} is off by {value:.1e}, more than {limit:.0e}{where}")


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Let a read of memory that nothing has written show up as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:  # torch.utils.deterministic.fill_uninitialized_memory is on by default
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------------------- the kernels


def kernels_against_float64(device: str, dtype: torch.dtype, layout: str) -> str:
    """The kernels on emulated ranks against one BatchNorm in float64, for all shapes and splits.

    Raises:
        Failed: a value is off by more than its limit, or has another dtype or layout.
    """
    worst, cases = ("", 0.0), 0
    with uninitialised_memory_is_nan():
        for shape in SHAPES:
            memory_format = LAYOUTS[layout].get(len(shape) + 1)
            if memory_format is None:
                continue
            for split, sizes in SPLITS.items():
                values, statistics = _one_case(device, dtype, shape, sizes, memory_format, cases)
                where = f" ({'×'.join(map(str, shape))}, {split})"
                require(values, LIMITS[dtype], where)
                require(statistics, min(STATISTICS_LIMIT, LIMITS[dtype] * 10), where)
                worst = max(worst, *(values | statistics).items(), key=lambda item: item[1])
                cases += 1
    return f"{cases} cases, largest error {worst[1]:.0e} ({worst[0]})"


def _one_case(
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    memory_format: torch.memory_format,
    seed: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of outputs and gradients, and of statistics."""
    generator = torch.Generator().manual_seed(seed)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device)

    channels = shape[0]
    x = (randn(sum(sizes), *shape) * 2 + 3).to(dtype)
    grad = randn(*x.shape).to(dtype)
    weight, bias = randn(channels).to(parameter_dtype), randn(channels).to(parameter_dtype)
    running_mean, running_var = torch.zeros_like(weight), torch.ones_like(weight)
    batches = torch.tensor(2**40, device=device)

    xs = [part.contiguous(memory_format=memory_format) for part in x.split(sizes)]
    # The first rank's gradient comes in the other layout, as some networks give it.
    grads = [part.contiguous(memory_format=memory_format) for part in grad.split(sizes)]
    grads[0] = grad.split(sizes)[0]
    rows = torch.stack([kernels.local_statistics(part) for part in xs])
    mean, var, invstd, total = kernels.combine_and_track(
        rows, EPS, running_mean, running_var, batches, MOMENTUM
    )
    ys = [kernels.normalise(part, weight, bias, mean, var, invstd, EPS) for part in xs]
    pairs = list(zip(grads, xs, strict=True))
    each = [kernels.gradient_sums(g, part, weight, mean, var, invstd, EPS) for g, part in pairs]
    sums, weight_grad, bias_grad = (
        torch.stack(tensors).sum(0) for tensors in zip(*each, strict=True)
    )
    input_grads = [
        kernels.input_gradient(g, part, weight, mean, var, invstd, EPS, sums, total)
        for g, part in pairs
    ]
    for part, y, input_grad in zip(xs, ys, input_grads, strict=True):
        alike = part.numel() == 0 or y.is_contiguous(memory_format=memory_format)
        if y.dtype != dtype or input_grad.dtype != dtype or not alike:
            raise Failed(f"the output is {y.dtype} with strides {y.stride()} for {part.stride()}")
    if batches.item() != 2**40 + 1:
        raise Failed(f"num_batches_tracked is {batches.item()}, not {2**40 + 1}")

    # The reference is computed on the CPU, by other kernels.
    x, grad, weight, bias = (tensor.cpu().double() for tensor in (x, grad, weight, bias))
    x64, weight64, bias64 = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
    axes = [axis for axis in range(x.dim()) if axis != 1]
    number = x.numel() // channels
    want = nn.functional.batch_norm(x64, None, None, weight64, bias64, training=True, eps=EPS)
    want.backward(grad)
    true_var, true_mean = torch.var_mean(x, axes, correction=0)
    unbiased = true_var * number / max(number - 1, 1)
    steepest = grad.abs().max() * weight.abs().max() / (true_var + EPS).sqrt().min()
    most = grad.abs().sum() / channels
    values = {
        "output": error(torch.cat(ys), want),
        "gradient of the input": error(torch.cat(input_grads), x64.grad, steepest),
        "gradient of bias": error(bias_grad, bias64.grad, most),
        "gradient of weight": error(weight_grad, weight64.grad, 3 * most),
    }
    moved = 1 - MOMENTUM + MOMENTUM * unbiased
    statistics = {
        "mean": error(mean, true_mean),
        "variance": error(var, true_var),
        "running mean": error(running_mean, MOMENTUM * true_mean),
        "running variance": error(running_var, moved),
    }
    return values, statistics


def variance_at_a_large_mean(device: str) -> str:
    """float32 values a thousand standard deviations from 0, where sums of squares lose 19 %."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(16, 8, 64, 64, generator=generator) + 1e3).to(device)
    expected = x.double().var((0, 2, 3), correction=0)
    errors = {
        str(layout).removeprefix("torch."): error(
            kernels.local_statistics(x.contiguous(memory_format=layout))[8:16], expected
        )
        for layout in (torch.contiguous_format, torch.channels_last)
    }
    require(errors, 1e-4)
    return f"largest error {max(errors.values()):.0e}"


def triton_against_float64(device: str) -> str:
    """The combining kernel for 1 to 1,024 ranks against the plain version in float64."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for ranks in (1, 2, 3, 8, 257, 1024):
        for channels in (1, 16, 127, 129, 2048):
            for momentum in (0.1, None):
                for empty in (False, True):
                    rows = torch.rand(ranks, 2 * channels + 1, generator=generator) + 0.5
                    rows[:, -1] = torch.randint(1, 10**6, (ranks,), generator=generator)
                    if empty:
                        rows[::2] = 0
                    rows = rows.to(device)
                    found = _combined(fused.combine_on_gpu, rows, momentum)
                    with mock.patch.object(kernels, "can_launch", lambda device: False):
                        expected = _combined(kernels.combine_and_track, rows.double(), momentum)
                    errors = {name: error(tensor, expected[name]) for name, tensor in found.items()}
                    require(errors, 3e-6, f" ({ranks} ranks, {channels} channels)")
                    worst = max(worst, *errors.values())
    return f"largest error {worst:.0e}"


def triton_repeats_its_bits(device: str) -> str:
    """50 runs of the combining kernel: a race between its programs would change a bit."""
    rows = (torch.rand(8, 2 * 2048 + 1, generator=torch.Generator().manual_seed(0)) + 0.5).to(
        device
    )
    first = _combined(fused.combine_on_gpu, rows, 0.1)
    for repeat in range(1, 50):
        for name, tensor in _combined(fused.combine_on_gpu, rows, 0.1).items():
            if not torch.equal(tensor, first[name]):
                raise Failed(f"{name} has other bits in run {repeat + 1} than in the first")
    return "50 runs"


def _combined(combine: Callable, rows: Tensor, momentum: float | None) -> dict[str, Tensor]:
    channels = rows.size(1) // 2
    running_mean, running_var = rows.new_full((2, channels), 0.3).unbind()
    batches = torch.tensor(2**33, device=rows.device)
    found = combine(rows, EPS, running_mean, running_var, batches, momentum)
    names = ("mean", "variance", "1/deviation", "total")
    state = {"running mean": running_mean, "running variance": running_var, "batches": batches}
    named = dict(zip(names, found, strict=True))
    return named | state | {"total": named["total"].sum()}


# --------------------------------------------------------------------------- a group of one


@contextmanager
def group_of_one(device: str) -> Iterator[None]:
    """A process group of this process alone, in which every layer synchronises all the same."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            backend(device), init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            with forced_paths():
                yield
        finally:
            dist.destroy_process_group()


def _networks(
    device: str, memory_format: torch.memory_format
) -> tuple[nn.Module, nn.Module, Tensor]:
    """A small network with SyncBatchNorm, the same with BatchNorm, and an input."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 1, bias=False),
        nn.BatchNorm2d(64),
    ).to(device, memory_format=memory_format)
    own = convert_norm(copy.deepcopy(plain), "sync_bn", impl="own")[0]
    x = torch.randn(4, 8, 14, 14, device=device).contiguous(memory_format=memory_format)
    return own, plain, x


def _trained(network: nn.Module, x: Tensor, call: Callable | None = None) -> dict[str, Tensor]:
    """What a forward and a backward pass leave: output, gradients, buffers."""
    x = x.clone().requires_grad_()
    network.zero_grad()
    y = (call or network)(x)
    # Σ y alone would have no gradient before BatchNorm.
    factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device)
    (y.float() * factor).sum().backward()
    tensors = {"output": y, "gradient of the input": x.grad}
    for name, parameter in network.named_parameters():
        tensors[f"gradient of {name}"] = parameter.grad
    tensors |= dict(network.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def as_batch_norm_under_autocast(device: str) -> str:
    """A network under bf16 autocast, with SyncBatchNorm and with BatchNorm, both layouts."""
    worst = 0.0
    for memory_format in (torch.contiguous_format, torch.channels_last):
        own, plain, x = _networks(device, memory_format)
        with torch.autocast(device, torch.bfloat16):
            found, expected = _trained(own, x), _trained(plain, x)
        errors = {name: error(tensor, expected[name]) for name, tensor in found.items()}
        require(errors, 5e-2)
        worst = max(worst, *errors.values())
    return f"largest error {worst:.0e}"


def compiled_as_eager(device: str) -> str:
    """A compiled network's outputs, gradients and statistics are the eager ones; none is zero."""
    worst = 0.0
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch._dynamo.reset()
        own, _, x = _networks(device, memory_format)
        # On the CPU without code generation, which takes a C++ compiler and a minute.
        compiler = "inductor" if device == "cuda" else "aot_eager"
        again = copy.deepcopy(own)
        call = torch.compile(again, fullgraph=True, dynamic=False, backend=compiler)
        found, expected = _trained(again, x, call), _trained(own, x)
        for name, tensor in found.items():
            if not tensor.any():
                raise Failed(f"{name} is zero")
        errors = {name: error(tensor, expected[name]) for name, tensor in found.items()}
        require(errors, 2e-4)
        worst = max(worst, *errors.values())
    return f"largest error {worst:.0e}"


def no_host_synchronisation(device: str) -> str:
    """A forward and a backward pass in which torch raises where the host waits for the device."""
    layer = SyncBatchNorm(64, device=device)
    x = torch.randn(4, 64, 8, 8, device=device, requires_grad=True)
    for _ in range(3):  # compile and allocate before
        layer(x).sin().sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sin().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def captured_and_replayed(device: str) -> str:
    """A CUDA graph of a forward and a backward pass, replayed on other values."""
    layer = SyncBatchNorm(64, device=device)
    x = torch.randn(4, 64, 8, 8, device=device, requires_grad=True)

    def passes() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).sin().sum().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            passes()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes()
    with torch.no_grad():
        x.copy_(torch.randn_like(x) * 3 + 1)
    layer.reset_running_stats()
    graph.replay()
    torch.cuda.synchronize()

    plain = nn.BatchNorm2d(64, device=device)
    values = x.detach().clone().requires_grad_()
    plain(values).sin().sum().backward()
    scale = values.grad.abs().max().clamp(min=1)
    errors = {"gradient of the input": error(x.grad, values.grad, scale)}
    errors |= {
        name: error(buffer, plain.get_buffer(name)) for name, buffer in layer.named_buffers()
    }
    require(errors, 1e-5)
    return f"largest error {max(errors.values()):.0e}"


# -------------------------------------------------------------------------- three processes


def three_processes(device: str) -> str:
    """Three processes on one device over gloo: uneven batches and empty ranks, in float64."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_of_three, (device, folder), 3)
    return f"within {check.LIMITS[torch.float64]:.0e} in float64, uneven and empty"


def _one_of_three(rank: int, device: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=3,
        timeout=check.TIMEOUT,
    )
    for splits in ((3, 5, 2), (0, 4, 1), (4, 0, 0)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            check.compare(rank, 3, device, splits, torch.float64, memory_format)
    dist.barrier()
    dist.destroy_process_group()


# ----------------------------------------------------------------------------- the command

KERNELS = {
    f"kernels, {str(dtype).removeprefix('torch.')}, {layout}": partial(
        kernels_against_float64, dtype=dtype, layout=layout
    )
    for dtype in LIMITS
    for layout in LAYOUTS
}
PARTS = {
    "kernels": KERNELS | {"kernels, a mean of a thousand deviations": variance_at_a_large_mean},
    "group_of_one": {
        "bf16 autocast as BatchNorm": as_batch_norm_under_autocast,
        "compiled as eager": compiled_as_eager,
    },
    "three_processes": {"three processes": three_processes},
}
GPU_ONLY = {
    "kernels": {
        "Triton kernel against float64": triton_against_float64,
        "Triton kernel, the same bits": triton_repeats_its_bits,
    },
    "group_of_one": {
        "no host synchronisation": no_host_synchronisation,
        "captured in a CUDA graph and replayed": captured_and_replayed,
    },
    "three_processes": {},
}


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for part in options.parts:
        run_part(part, options.device)


def run_part(part: str, device: str) -> None:
    """Run the checks of one part and send their results."""

    def run_all() -> None:
        for name, function in PARTS[part].items():
            run_check(name, partial(function, device)).send()
        for name, function in GPU_ONLY[part].items():
            on_gpu = device == "cuda"
            (run_check(name, partial(function, device)) if on_gpu else needs_gpu(name)).send()

    if part == "group_of_one":
        with group_of_one(device):
            run_all()
    else:
        run_all()


if __name__ == "__main__":
    main()
