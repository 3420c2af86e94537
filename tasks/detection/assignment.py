"""Which predictions learn which object: task-aligned assignment (TOOD, arXiv:2108.07755).

A prediction is good for an object if it gives the object's class a high score and its box overlaps
the object well. The best predictions of each object are its positives, and their goodness is the
score that they learn, so that the score of a detection tells how well its box fits.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

SCORE_POWER = 1.0  # α and β of the paper
IOU_POWER = 6.0

# Smaller overlaps count as this much. Otherwise a box that doesn't meet its object yet would have a
# target score of zero, and no loss to learn from.
MIN_IOU = 0.1


class Assignment(NamedTuple):
    """What each of the A predictions of each image learns.

    Attributes:
        object: (B, A) int64, the number of the object; any number where there is none.
        target: (B, A) the score to give to that object's class; 0 where there is no object.
    """

    object: Tensor
    target: Tensor


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    centers: Tensor,
    strides: Tensor,
    true_boxes: Tensor,
    labels: Tensor,
    *,
    positives: int = 10,
) -> Assignment:
    """Give each object its best predictions, at most ``positives`` of them.

    Candidates are the predictions of the cells whose centre lies in the object's box, and of the
    cell on each level in which the box's own centre lies, so even the smallest object has some. A
    prediction that several objects choose goes to the one that it overlaps most, so an object may
    lose all of its predictions to others. Images don't depend on each other, sizes don't depend on
    the data, and nothing waits for the device.

    Args:
        scores: (B, A, K) in [0, 1].
        boxes: (B, A, 4) x1, y1, x2, y2, each of some area.
        centers: (A, 2) x, y of each prediction's cell.
        strides: (A,) side of each prediction's cell.
        true_boxes: (B, M, 4).
        labels: (B, M) int64, -1 for padding.
        positives: the paper's m.
    """
    if labels.shape[1] == 0:
        none = scores.new_zeros(scores.shape[:2])
        return Assignment(none.long(), none)
    iou = torch.vmap(box_iou)(true_boxes, boxes)  # (B, M, A)
    of_class = labels.clamp(min=0).unsqueeze(-1).expand_as(iou)
    score = scores.transpose(1, 2).gather(1, of_class)

    size = true_boxes[..., 2:] - true_boxes[..., :2]
    distance = centers - (true_boxes[..., :2] + size / 2).unsqueeze(2)  # (B, M, A, 2)
    reach = torch.maximum(size.unsqueeze(2), strides.unsqueeze(-1)) / 2
    candidate = (distance.abs() <= reach).all(-1) & (labels >= 0).unsqueeze(-1)

    iou = iou.nan_to_num().clamp(min=MIN_IOU)  # padding may have no area
    goodness = score.pow(SCORE_POWER) * iou.pow(IOU_POWER) * candidate
    best = goodness.topk(min(positives, goodness.shape[-1]), dim=-1)
    chosen = torch.zeros_like(candidate).scatter(-1, best.indices, best.values > 0)

    owner = torch.where(chosen, iou, 0).argmax(1)  # (B, A)
    chosen &= owner.unsqueeze(1) == torch.arange(labels.shape[1], device=labels.device)[:, None]
    goodness, iou = goodness * chosen, iou * chosen
    # The best prediction of an object gets the largest overlap of the object's boxes as its target,
    # the others less.
    highest = goodness.amax(-1, keepdim=True).clamp(min=torch.finfo(goodness.dtype).tiny)
    target = goodness / highest * iou.amax(-1, keepdim=True)
    return Assignment(owner, target.sum(1))
