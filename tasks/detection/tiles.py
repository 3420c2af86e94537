"""Objects found in tiles of a picture, as objects of the picture.

Two tiles that overlap see the region that they share twice. Two boxes of one class are the same
object if their parts in that region agree. Then a box that its tile saw whole stays, rather than
one that is cut off at a tile's border; of boxes that are all cut off, the box around them stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from data.tiles import Window

SAME = 0.5  # IoU, within the shared region, of boxes that are the same object
EDGE = 2.0  # pixels: a box this close to its tile's inner border is cut off


def merged(
    parts: Sequence[tuple[Window, Tensor, Tensor, Tensor]], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The objects of a picture, best first.

    Args:
        parts: of each tile its window, boxes (N, 4) as corners in pixels of the picture, scores
            (N,) and labels (N,).
        size: (height, width) of the picture.

    Returns:
        Boxes (M, 4), scores (M,) and labels (M,).
    """
    boxes = torch.cat([part[1] for part in parts])
    scores, labels = (torch.cat([part[n] for part in parts]) for n in (2, 3))
    tile = torch.cat([torch.full((len(part[1]),), n) for n, part in enumerate(parts)])
    whole = torch.cat([~_is_cut(part[1], part[0], size) for part in parts])
    areas = torch.tensor(
        [(w.left, w.top, w.left + w.width, w.top + w.height) for w, *_ in parts],
        dtype=boxes.dtype,
    )
    group = torch.arange(len(boxes))
    for first in range(len(parts)):
        for second in range(first + 1, len(parts)):
            for mine, theirs in _pairs(first, second, areas, tile, boxes, labels):
                _join(group, mine, theirs)
    found = []
    for number in group.unique().tolist():
        members = (group == number).nonzero().flatten()
        best = members[whole[members]] if whole[members].any() else members
        top = best[scores[best].argmax()]
        box = boxes[top]
        if not whole[members].any():  # larger than a tile: around all that was seen of it
            box = torch.cat([boxes[members, :2].amin(0), boxes[members, 2:].amax(0)])
        found.append((box, scores[members].max(), labels[top]))
    if not found:
        return boxes, scores, labels
    boxes, scores, labels = (torch.stack(column) for column in zip(*found, strict=True))
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], labels[order]


def _is_cut(boxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Which boxes end at a border of their tile that isn't one of the picture."""
    left, top = window.left, window.top
    right, bottom = left + window.width, top + window.height
    ends = ((0, left, left > 0, 1), (1, top, top > 0, 1))
    ends += ((2, right, right < size[1], -1), (3, bottom, bottom < size[0], -1))
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    for corner, border, inner, sign in ends:
        if inner:
            cut |= (boxes[:, corner] - border) * sign <= EDGE
    return cut


def _pairs(
    first: int, second: int, areas: Tensor, tile: Tensor, boxes: Tensor, labels: Tensor
) -> list[list[int]]:
    """Pairs of boxes of two tiles that are the same object."""
    low = torch.maximum(areas[first, :2], areas[second, :2])
    high = torch.minimum(areas[first, 2:], areas[second, 2:])
    if not (low < high).all():
        return []
    mine, theirs = ((tile == n).nonzero().flatten() for n in (first, second))
    seen = [
        boxes[each].view(-1, 2, 2).clamp(min=low, max=high).view(-1, 4) for each in (mine, theirs)
    ]
    same = box_iou(*seen).nan_to_num() >= SAME
    same &= labels[mine][:, None] == labels[theirs][None]
    return [[int(mine[a]), int(theirs[b])] for a, b in same.nonzero().tolist()]


def _join(group: Tensor, mine: int, theirs: int) -> None:
    """Let two boxes, and all that are the same as one of them, be one object."""
    group[group == group[theirs]] = group[mine].clone()
