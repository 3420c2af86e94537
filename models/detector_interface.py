"""What every detector has in common: the interface of its forward, and its last step.

A detector is a module with

    model(images, targets)  → DetectorLosses, in training and in evaluation mode
    model(images)           → a Detections for each picture, in evaluation mode
    model(images, targets, detect=True)
                            → both at once, in evaluation mode
    model.divides_by        "positives" or "images": the global count to divide the losses by

images is a float tensor (B, 3, H, W) of RGB in [0, 1]. targets holds, padded to M objects,
"boxes" (B, M, 4) as x1, y1, x2, y2 in pixels, "labels" (B, M) int64 with -1 for padding, and for
Mask R-CNN "masks" (B, M, H, W) uint8. Class 0 is a class like any other: there is no background.
"""

from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image


class DetectorLosses(NamedTuple):
    """The losses of a batch, ready to be added over batches and processes.

    Attributes:
        parts: each part of the loss as a sum over the batch, a scalar with a gradient.
        positives: what the batch adds to the count that `divides_by="positives"` asks for; None
            for a detector that divides by the pictures.
    """

    parts: dict[str, Tensor]
    positives: Tensor | None = None


class Detections(TypedDict):
    """What was found in a picture, best first: N objects."""

    boxes: Tensor  # (N, 4) x1, y1, x2, y2 in pixels of the input
    scores: Tensor  # (N,) in [0, 1]
    labels: Tensor  # (N,) int64
    masks: NotRequired[Tensor]  # (N, H, W) in [0, 1], above one half inside the object


def on_cpu(found: list[Detections]) -> list[Detections]:
    """The detections of a batch on the CPU, in one transfer; masks stay where they are."""
    rows = [torch.column_stack([f["boxes"], f["scores"], f["labels"]]) for f in found]
    table = torch.cat(rows).cpu()
    return [
        {**f, "boxes": part[:, :4], "scores": part[:, 4], "labels": part[:, 5].long()}
        for f, part in zip(found, table.split([len(row) for row in rows]), strict=True)
    ]


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.6,
    candidates: int = 1000,
    max_detections: int = 100,
) -> Detections:
    """Non-maximum suppression for one picture: of overlapping boxes of a class the best remains.

    Args:
        boxes: (A, 4) x1, y1, x2, y2; every box may be found as several classes.
        scores: (A, K) in [0, 1].
        image_size: (height, width), which the boxes are clipped to.
        score_threshold: what scores less is no detection.
        iou_threshold: boxes of one class that overlap more are the same object.
        candidates: how many of the best (box, class) pairs are looked at.
        max_detections: how many remain at most.
    """
    classes = scores.shape[1]
    best, index = scores.flatten().topk(min(candidates, scores.numel()))
    kept = (best > score_threshold).nonzero().flatten()  # the device is waited for once
    index, best = index[kept], best[kept]
    found = clip_boxes_to_image(boxes[index // classes], image_size)
    labels = index % classes
    keep = batched_nms(found, best, labels, iou_threshold)[:max_detections]
    return {"boxes": found[keep], "scores": best[keep], "labels": labels[keep]}
