"""The loss of the one-stage detector, as sums over a batch."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou_loss

from models.detector import DetectorLosses
from models.task_aligned import assign

BOX_WEIGHT = 2.5  # of the box loss against the classification's, as in arXiv:2203.16250


def yolo_losses(
    logits: Tensor,
    boxes: Tensor,
    centers: Tensor,
    strides: Tensor,
    targets: dict[str, Tensor],
) -> DetectorLosses:
    """Cross entropy of every class and prediction, and CIoU loss (arXiv:1911.08287) of the boxes.

    Both sums count a positive by its target score, and `positives` is the sum of those, the
    denominator that makes the loss a weighted mean (arXiv:2108.07755, section 3.3). Dividing is
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

    # Predictions that learn no object compare with the unit box: a finite loss, which counts zero.
    aim = boxes.new_tensor([0, 0, 1, 1]).expand_as(boxes)
    wanted = torch.zeros_like(logits)
    if labels.shape[1]:
        index = found.object.unsqueeze(-1)
        aim = torch.where(positive, true_boxes.gather(1, index.expand_as(boxes)), aim)
        label = labels.clamp(min=0).gather(1, found.object)
        wanted = wanted.scatter(-1, label.unsqueeze(-1), found.target.unsqueeze(-1))

    cls = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    box = (complete_box_iou_loss(boxes, aim) * found.target).sum()
    return DetectorLosses({"cls": cls, "box": BOX_WEIGHT * box}, found.target.sum())
