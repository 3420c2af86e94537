"""Checking an exported file: what it computes, beside what the network computes, and how fast."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

REPEATS = 10
SECONDS = 3.0  # for each measurement of speed at most

Run = Callable[[Tensor], Sequence[Tensor]]


def largest_difference(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of outputs, relative to the largest value of the one it is in.

    Infinite where shapes differ or a value isn't a number.
    """
    worst = 0.0
    for ours, other in zip(mine, theirs, strict=True):
        if ours.shape != other.shape:
            return float("inf")
        if not ours.numel():
            continue
        scale = max(1.0, ours.abs().max().item())
        difference = (ours.double() - other.double()).abs().max().item() / scale
        worst = difference if difference == difference and difference > worst else worst
        if difference != difference:
            return float("inf")
    return worst


def milliseconds(run: Run, images: Tensor) -> float:
    """The shortest of several runs."""
    run(images)
    shortest, begun = float("inf"), time.perf_counter()
    for _ in range(REPEATS):
        before = time.perf_counter()
        run(images)
        shortest = min(shortest, time.perf_counter() - before)
        if time.perf_counter() - begun > SECONDS:
            break
    return 1000 * shortest


def as_list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Outputs of a network, one or several, on the CPU."""
    several = [outputs] if isinstance(outputs, Tensor) else outputs
    return [torch.as_tensor(each).cpu() for each in several]
