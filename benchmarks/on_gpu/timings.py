"""Timings of one layer, of a training step and of a script's loop, as ratios of one run.

    python -m benchmarks.on_gpu.timings --device cuda --seconds 120

    layer     forward and backward: time on the GPU (captured in a CUDA graph) and time of the host
    launches  of a layer's forward and backward
    step      of ResNet-50 in bf16: eager, and captured
    loop      train_classification.py against a loop around a batch in memory

The first three compare BatchNorm, torch's SyncBatchNorm and this project's in a group of one, in
which both synchronise all the same. Prints a JSON line per timing.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.on_gpu.layer import group_of_one
from benchmarks.on_gpu.result import LEFT_OUT, TIME, Result, failure, needs_gpu
from benchmarks.on_gpu.scripts import train
from benchmarks.syncbn import variant
from models.classification import build_classification_model
from tasks.classification.arrays import FAKE_CLASSES

NAMES = {"bn": "BatchNorm", "torch": "torch's", "own": "ours"}
KINDS = {"cuda": ("bn", "torch", "own"), "cpu": ("bn", "own")}  # torch's refuses the CPU
LAYERS = {
    "cuda": (
        (2, 64, 128, 128),
        (2, 256, 64, 64),
        (8, 64, 112, 112),
        (8, 256, 56, 56),
        (8, 512, 28, 28),
        (8, 2048, 7, 7),
    ),
    "cpu": ((2, 64, 32, 32),),
}
NETWORK = {"cuda": "resnet50", "cpu": "resnet18"}
BATCHES = {"cuda": (2, 8, 64), "cpu": (2,)}
# About how many seconds each timing takes.
SECONDS = {
    "cuda": {"launches": 4, "layer": 4, "step": 12, "loop": 60},
    "cpu": {"layer": 2, "step": 10, "loop": 20},
}
# Images, height and width, and optimizer steps of the loop.
LOOPS = {"cuda": ((64, 224, 200), (8, 224, 300)), "cpu": ((4, 64, 20),)}
# Options of the script.
WAYS = {
    "cuda": {
        "script, eager": {"cuda_graph": "off"},
        "script, captured": {"cuda_graph": "on"},
        "script, captured and compiled": {"cuda_graph": "on", "compile": True},
    },
    "cpu": {"script": {}},
}
CAPTURED_CALLS = 5

Call = Callable[[], object]


class Timing(NamedTuple):
    """A timing: its name, the function that returns its numbers, and about how long it takes."""

    name: str
    measure: Callable[[], dict[str, dict[str, float]]]
    seconds: float


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_by_turns(
    calls: dict[str, Call], device: str, rounds: int, repeats: int = 1, wait: bool = True
) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that other load falls on all of them.

    Args:
        calls: by name.
        device: "cpu" or "cuda".
        rounds: turns of each.
        repeats: calls in one turn.
        wait: whether the device's work counts, or only the host's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if wait:
                synchronise(device)
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(each) for name, each in seconds.items()}


def capture(call: Call, repeats: int = 1) -> Call:
    """The replay of a CUDA graph of ``repeats`` calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay


def passes(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)


def layers(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> dict[str, Call]:
    """Forward and backward of a layer of each kind, made a few times already."""
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=memory_format)
    grad = torch.randn_like(x)
    # Around the layer, because the conversion exchanges a model's layers, not the model.
    plain = nn.Sequential(nn.BatchNorm2d(shape[1]))
    calls = {
        kind: partial(passes, variant(plain, kind).to(device), x.requires_grad_(), grad)
        for kind in KINDS[device]
    }
    for call in calls.values():
        for _ in range(5):
            call()
    return calls


def time_layer(device: str, shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Microseconds of each kind: of the host, and captured."""
    calls = layers(device, shape, torch.bfloat16, torch.channels_last)
    host = seconds_by_turns(calls, device, rounds=10, repeats=5, wait=False)
    numbers = {"host µs": {kind: 1e6 * seconds for kind, seconds in host.items()}}
    if device == "cuda":
        graphs = {kind: capture(call, CAPTURED_CALLS) for kind, call in calls.items()}
        gpu = seconds_by_turns(graphs, device, rounds=10, repeats=20)
        per_call = {kind: 1e6 * seconds / CAPTURED_CALLS for kind, seconds in gpu.items()}
        numbers = {"captured µs": per_call} | numbers
    return numbers


def count_launches(device: str, memory_format: torch.memory_format) -> dict[str, dict[str, float]]:
    """Kernels, copies and fills on the GPU in a layer's forward and backward pass."""
    counts = {}
    for kind, call in layers(device, (2, 64, 56, 56), torch.float32, memory_format).items():
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        counts[kind] = sum(event.device_type.name == "CUDA" for event in profile.events())
    return {"launches": counts}


class Step:
    """A training step: forward in bf16 (float32 on the CPU), backward, SGD.

    Args:
        model: on the device.
        images: (N, 3, H, W).
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        self.optimizer = torch.optim.SGD(
            model.parameters(), 1e-3, momentum=0.9, nesterov=True, fused=images.is_cuda
        )

    def __call__(self) -> None:
        """Make the step; nothing in it waits for the device."""
        # Without the cache of casts, which can't be captured.
        with torch.autocast(
            "cuda", torch.bfloat16, enabled=self.images.is_cuda, cache_enabled=False
        ):
            loss = F.cross_entropy(self.model(self.images).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def time_step(device: str, batch: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of ResNet-50 with each kind of layer: eager, and captured."""
    size = 224 if device == "cuda" else 64
    images = torch.randn(batch, 3, size, size, device=device)
    model = build_classification_model(NETWORK[device], FAKE_CLASSES, image_size=(size, size))
    steps = {kind: Step(variant(model, kind).to(device), images) for kind in KINDS[device]}
    for step in steps.values():
        for _ in range(3):
            step()
    eager = seconds_by_turns(steps, device, rounds=12)
    numbers = {"eager ms": {kind: 1e3 * seconds for kind, seconds in eager.items()}}
    if device == "cuda":
        graphs = {kind: capture(step) for kind, step in steps.items()}
        captured = seconds_by_turns(graphs, device, rounds=12)
        numbers["captured ms"] = {kind: 1e3 * seconds for kind, seconds in captured.items()}
    return numbers


def time_loop(device: str, batch: int, size: int, steps: int) -> dict[str, dict[str, float]]:
    """Images per second of train_classification.py, and of a loop around one batch.

    Both with the same network, batch, optimizer and precision, and without averaged weights. The
    loop around one batch runs before and after the script.
    """
    before = _bare_loop(device, batch, size, steps // 5)
    speeds, waiting = {}, {}
    for name, options in WAYS[device].items():
        with tempfile.TemporaryDirectory() as folder:
            run = train(
                "classification",
                device,
                Path(folder) / "loop",
                "bf16" if device == "cuda" else "no",
                dataset="fake",
                model=NETWORK[device],
                image_size=[size, size],
                batch_size=batch,
                max_steps=steps,
                eval_every=steps,
                log_every=steps // 10,
                limit_val=batch,
                optimizer="sgd",
                ema=0,
                pictures=0,
                num_workers=max(1, (os.cpu_count() or 1) - 2),
                **options,
            )
        speeds[name] = statistics.median(run.speeds[2:])
        waiting[name] = 100 * run.summary["data_wait_fraction"]
    bare = statistics.mean([before, _bare_loop(device, batch, size, steps // 5)])
    return {"images/s": {"bare loop": bare} | speeds, "waiting, %": waiting}


def _bare_loop(device: str, batch: int, size: int, steps: int) -> float:
    model = build_classification_model(NETWORK[device], FAKE_CLASSES, image_size=(size, size))
    step = Step(model.to(device), torch.randn(batch, 3, size, size, device=device))
    for _ in range(max(2, steps // 4)):
        step()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return batch * steps / (time.perf_counter() - start)


def in_words(numbers: dict[str, dict[str, float]]) -> str:
    """The numbers, and in brackets their ratio to the first."""
    parts = []
    for unit, values in numbers.items():
        base = next(iter(values.values()))
        words = [
            f"{NAMES.get(name, name)} {value:.3g}" + (f" ({value / base:.2f})" if place else "")
            for place, (name, value) in enumerate(values.items())
        ]
        parts.append(f"{unit}: {', '.join(words)}")
    return "; ".join(parts)


def timings(device: str) -> list[Timing]:
    """All timings of a device, the quick ones first."""
    found, seconds = [], SECONDS[device]
    if device == "cuda":
        for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            count = partial(count_launches, device, layout)
            found.append(Timing(f"launches of a layer, {name}", count, seconds["launches"]))
    for shape in LAYERS[device]:
        name = f"layer, {'×'.join(map(str, shape))} bf16 NHWC"
        found.append(Timing(name, partial(time_layer, device, shape), seconds["layer"]))
    for batch in BATCHES[device]:
        step = partial(time_step, device, batch)
        found.append(Timing(f"step of {NETWORK[device]}, {batch} images", step, seconds["step"]))
    for loop in LOOPS[device]:
        name = f"loop of train_classification.py, {loop[0]} images"
        found.append(Timing(name, partial(time_loop, device, *loop), seconds["loop"]))
    return found


def main() -> None:
    """Measure as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--only", default="", help="timings whose name holds this")
    parser.add_argument("--seconds", type=float, default=120.0, help="to stop after")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    torch.set_num_threads(1)
    if options.device == "cpu":
        for name in ("launches of a layer", "layer, captured", "step, captured"):
            needs_gpu(name).send()
    with group_of_one(options.device):
        for timing in timings(options.device):
            if options.only not in timing.name:
                continue
            left = deadline - time.monotonic()
            if left < timing.seconds:
                why = f"takes about {timing.seconds:.0f} s, and {max(0, left):.0f} s were left"
                Result(timing.name, LEFT_OUT, why).send()
                continue
            try:
                numbers = timing.measure()
                Result(timing.name, TIME, in_words(numbers), numbers).send()
            except torch.OutOfMemoryError:
                Result(timing.name, LEFT_OUT, "takes more memory than this GPU has").send()
            except Exception as error:
                failure(timing.name, error).send()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
