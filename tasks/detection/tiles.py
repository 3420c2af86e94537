"""Objects found in tiles of a picture, as objects of the picture.

Two tiles that overlap see the region that they share twice. A box is the same object as a surer one
of another tile, and of its class, if the parts of both in that region agree. It is then left out:
unless the surer one is cut off at its tile's border. Then a box that its own tile saw whole takes
its place, and one that is cut off too extends it. Boxes of one tile are never joined, since its
own suppression has kept them apart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.tiles import Window

SAME = 0.5  # IoU, within the shared region, of boxes that are the same object
EDGE = 2.0  # pixels: a box this close to its tile's inner border is cut off
TRUSTED = 0.5  # of the surer score: a box must score so much to change the surer one's borders

Part = tuple[Window, Tensor, Tensor, Tensor]


def merged(parts: Sequence[Part], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The objects of a picture, best first.

    Args:
        parts: of each tile its window, boxes (N, 4) as corners in pixels of the picture, scores
            (N,) and labels (N,).
        size: (height, width) of the picture.

    Returns:
        Boxes (M, 4), scores (M,) and labels (M,).
    """
    boxes, scores, labels = (torch.cat([part[n] for part in parts]) for n in (1, 2, 3))
    corners = boxes.double().numpy().copy()
    tile = np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])
    cut = np.concatenate([_is_cut(part[1].double().numpy(), part[0], size) for part in parts])
    areas = np.array([(w.left, w.top, w.left + w.width, w.top + w.height) for w, *_ in parts])
    beside = [_overlapping(areas, number) for number in range(len(parts))]
    score, label = scores.double().numpy(), labels.numpy()
    kept: list[list[int]] = [[] for _ in parts]  # of each tile, the best first
    extended: dict[int, set[int]] = {}  # of a kept box, the tiles that have changed it
    for box in scores.argsort(descending=True, stable=True).tolist():
        surer = _surer(box, beside[tile[box]], kept, areas, corners, label, tile)
        if surer is None:
            kept[tile[box]].append(box)
            extended[box] = {tile[box]}
        elif cut[surer] and tile[box] not in extended[surer]:
            if score[box] < TRUSTED * score[surer]:
                continue
            extended[surer].add(tile[box])
            if cut[box]:
                corners[surer, :2] = np.minimum(corners[surer, :2], corners[box, :2])
                corners[surer, 2:] = np.maximum(corners[surer, 2:], corners[box, 2:])
            else:
                corners[surer], cut[surer] = corners[box], False
    found = torch.tensor(sorted((n for each in kept for n in each), key=lambda n: -score[n]))
    found = found.long()
    return torch.from_numpy(corners)[found].to(boxes), scores[found], labels[found]


def _surer(
    box: int,
    beside: Sequence[int],
    kept: list[list[int]],
    areas: np.ndarray,
    corners: np.ndarray,
    label: np.ndarray,
    tile: np.ndarray,
) -> int | None:
    """The kept box of a neighbouring tile that is the same object, or None."""
    for other in beside:
        rivals = [n for n in kept[other] if label[n] == label[box]]
        if not rivals:
            continue
        low = np.maximum(areas[tile[box], :2], areas[other, :2])
        high = np.minimum(areas[tile[box], 2:], areas[other, 2:])
        mine = np.clip(corners[box].reshape(2, 2), low, high)
        theirs = np.clip(corners[rivals].reshape(-1, 2, 2), low, high)
        sides = np.minimum(theirs[:, 1], mine[1]) - np.maximum(theirs[:, 0], mine[0])
        shared = sides.clip(0).prod(1)
        both = (theirs[:, 1] - theirs[:, 0]).prod(1) + (mine[1] - mine[0]).prod() - shared
        same = shared >= SAME * np.maximum(both, 1e-9)
        if same.any():
            return rivals[int(same.argmax())]
    return None


def _overlapping(areas: np.ndarray, number: int) -> list[int]:
    """The other tiles that share a region with a tile."""
    low = np.maximum(areas[:, :2], areas[number, :2])
    high = np.minimum(areas[:, 2:], areas[number, 2:])
    return [n for n in np.flatnonzero((low < high).all(1)).tolist() if n != number]


def _is_cut(boxes: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Which boxes end at a border of their tile that isn't one of the picture."""
    left, top = window.left, window.top
    right, bottom = left + window.width, top + window.height
    cut = np.zeros(len(boxes), dtype=bool)
    ends = ((0, left, left > 0, 1), (1, top, top > 0, 1))
    ends += ((2, right, right < size[1], -1), (3, bottom, bottom < size[0], -1))
    for corner, border, is_inner, sign in ends:
        if is_inner:
            cut |= (boxes[:, corner] - border) * sign <= EDGE
    return cut
