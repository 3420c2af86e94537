"""The interface of every detector: what goes in and what comes out.

A detector is a module with

    model(images, targets)  → DetectorLosses, in training and in evaluation mode
    model(images)           → a Detections for each image, in evaluation mode
    model(images, targets, detect=True)
                            → both at once, in evaluation mode
    model.divides_by        "positives" or "images": the global count to divide the losses by

``images`` is a float tensor (B, 3, H, W) of RGB in [0, 1]. ``targets`` holds, padded to M objects,
"boxes" (B, M, 4) as x1, y1, x2, y2 in pixels, "labels" (B, M) int64 with -1 for padding, and for
Mask R-CNN "masks" (B, M, H, W) uint8. Class 0 is a class like any other: there is no background.
"""

from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor


class DetectorLosses(NamedTuple):
    """The losses of a batch, ready to be added over batches and processes.

    Attributes:
        parts: each part of the loss as a sum over the batch, a scalar with a gradient.
        positives: what the batch adds to the count that ``divides_by="positives"`` asks for; None
            for a detector that divides by the images.
    """

    parts: dict[str, Tensor]
    positives: Tensor | None = None


class Detections(TypedDict):
    """What was found in an image, best first: N objects.

    Attributes:
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the input.
        scores: (N,) in [0, 1].
        labels: (N,) int64.
        masks: (N, H, W) in [0, 1], above one half inside the object; Mask R-CNN's alone.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: NotRequired[Tensor]


def on_cpu(found: list[Detections]) -> list[Detections]:
    """The detections of a batch on the CPU, in one transfer; masks stay where they are."""
    rows = [torch.column_stack([f["boxes"], f["scores"], f["labels"]]) for f in found]
    table = torch.cat(rows).cpu()
    return [
        {**f, "boxes": part[:, :4], "scores": part[:, 4], "labels": part[:, 5].long()}
        for f, part in zip(found, table.split([len(row) for row in rows]), strict=True)
    ]
