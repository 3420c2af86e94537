"""Checking an exported file: what it computes, beside what the network computes, and how fast."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.detector_interface import Detections

REPEATS = 10
SECONDS = 3.0  # for each measurement of speed at most

SURE = 0.05  # the score of an object that must be the same in both

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


def difference_of_objects(mine: Detections, theirs: Detections) -> float:
    """How far two lists of objects differ, whatever their order.

    Scores are compared by rank; of objects that score SURE or more also label and box, relative to
    the box's size. Where two scores are equal but for rounding, suppression may keep either box:
    weaker objects, of which nobody is sure, are not compared one by one.

    Returns:
        The largest difference; infinite where an object is in one list only.
    """
    ranked = [found["scores"].double().sort(descending=True).values for found in (mine, theirs)]
    shared = min(map(len, ranked))
    left = [*ranked[0][shared:], *ranked[1][shared:]]
    worst = max([(ranked[0][:shared] - ranked[1][:shared]).abs().max().item() if shared else 0.0])
    worst = max([worst, *(float(score) for score in left)])
    for ours, other in ((mine, theirs), (theirs, mine)):
        sure = ours["scores"] >= SURE
        for box, label in zip(ours["boxes"][sure].double(), ours["labels"][sure], strict=True):
            same = other["boxes"][other["labels"] == label].double()
            if not len(same):
                return float("inf")
            side = (box[2:] - box[:2]).max().clamp(min=1)
            worst = max(worst, ((same - box).abs().amax(1).min() / side).item())
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
