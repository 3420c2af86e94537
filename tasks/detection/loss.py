"""The loss of the one-stage detector, as sums over a batch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.detector_interface import DetectorLosses
from tasks.detection.assignment import assign

BOX_WEIGHT = 2.5  # of the box loss against the classification's, as in arXiv:2203.16250


def yolo_losses(
    logits: Tensor,
    boxes: Tensor,
    centers: Tensor,
    strides: Tensor,
    targets: dict[str, Tensor],
) -> DetectorLosses:
    """Cross entropy of every class and prediction, and CIoU loss (arXiv:1911.08287) of the boxes.

    Both sums weight a positive by its target score, and ``positives`` is the sum of these scores,
    the denominator that makes the loss a weighted mean (arXiv:2108.07755, section 3.3). Dividing is
    left to the caller, who knows the sum over all processes.

    Args:
        logits: (B, A, K).
        boxes: (B, A, 4) x1, y1, x2, y2.
        centers: (A, 2) x, y of each prediction's cell.
        strides: (A,) side of each prediction's cell.
        targets: "boxes" (B, M, 4) and "labels" (B, M), -1 for padding.
    """
    true_boxes, labels = targets["boxes"].to(boxes), targets["labels"]
    found = assign(logits.sigmoid(), boxes, centers, strides, true_boxes, labels)
    positive = (found.target > 0).unsqueeze(-1)

    # Predictions without an object are compared with the unit box: a finite loss of weight zero.
    aim = F.pad(torch.ones_like(boxes[..., 2:]), (2, 0))
    wanted = torch.zeros_like(logits)
    if labels.shape[1]:
        index = found.object.unsqueeze(-1)
        aim = torch.where(positive, true_boxes.gather(1, index.expand_as(boxes)), aim)
        label = labels.clamp(min=0).gather(1, found.object)
        wanted = wanted.scatter(-1, label.unsqueeze(-1), found.target.unsqueeze(-1))

    cls = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    box = (complete_iou_loss(boxes, aim) * found.target).sum()
    return DetectorLosses({"cls": cls, "box": BOX_WEIGHT * box}, found.target.sum())


def complete_iou_loss(boxes: Tensor, aims: Tensor) -> Tensor:
    """1 - CIoU of pairs of boxes: overlap, distance of the centres, proportions.

    arXiv:1911.08287, equations 8 to 11, with α as a constant. torchvision's function has the same
    values, but indexes by a mask, for which the host waits for the GPU and a compiled graph breaks.

    Args:
        boxes: (..., 4) x1, y1, x2, y2, of some area.
        aims: the same shape.

    Returns:
        (...), at least 0.
    """
    tiny = 1e-7
    (low, high), (aim_low, aim_high) = (b.split(2, dim=-1) for b in (boxes, aims))
    size, aim_size = high - low, aim_high - aim_low
    inner = _area((torch.minimum(high, aim_high) - torch.maximum(low, aim_low)).clamp(min=0))
    iou = inner / (_area(size) + _area(aim_size) - inner + tiny)
    hull = torch.maximum(high, aim_high) - torch.minimum(low, aim_low)
    gap = ((low + high - aim_low - aim_high) / 2).square().sum(-1)
    (width, height), (aim_width, aim_height) = size.unbind(-1), aim_size.unbind(-1)
    slant = torch.atan(aim_width / aim_height) - torch.atan(width / height)
    proportions = 4 / math.pi**2 * slant.square()
    with torch.no_grad():
        alpha = proportions / (1 - iou + proportions + tiny)
    return 1 - iou + gap / (hull.square().sum(-1) + tiny) + alpha * proportions


def _area(size: Tensor) -> Tensor:
    """(..., 2) → (...). In the gradient of ``prod`` the host would wait for the GPU."""
    width, height = size.unbind(-1)
    return width * height
