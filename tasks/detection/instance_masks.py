"""Outlines of objects: COCO's polygons and run lengths, as text in a table and as masks.

In a row an outline is JSON: a list of polygons ``[[x, y, x, y, ...], ...]`` in pixels, or run
lengths ``{"size": [height, width], "counts": ...}`` down the columns, compressed (a string) or not
(a list). An object without an outline has the empty string.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from torch.nn.functional import grid_sample

Outline = list | dict | None


def to_text(outline: Outline, size: tuple[int, int]) -> str:
    """The outline as JSON, or "" where there is none that can be drawn.

    Args:
        outline: polygons or run lengths, as they stand in a COCO file.
        size: (height, width) of the image, which run lengths must cover exactly. A point that
            lies further outside than the image is wide or high is moved to that distance.
    """
    read = _run_lengths if isinstance(outline, dict) else _polygons
    try:
        drawable = read(outline, size)
    except (LookupError, RuntimeError, TypeError, ValueError):  # any form but COCO's
        return ""
    return json.dumps(drawable) if drawable else ""


def _run_lengths(outline: dict[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    counts = outline["counts"]
    if list(outline["size"]) != list(size):
        return None
    if isinstance(counts, list):
        fit = all(isinstance(n, int) and n >= 0 for n in counts) and sum(counts) == math.prod(size)
        return {"size": list(size), "counts": counts} if fit else None
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    rle = {"size": list(size), "counts": counts}
    coco_mask.decode(rle)  # raises ValueError or RuntimeError if it is damaged
    return rle


def _polygons(outline: list | None, size: tuple[int, int]) -> list[list[float]]:
    height, width = size
    polygons = []
    for part in outline or ():
        points = np.asarray(part, dtype=np.float64)
        if not np.isfinite(points).all():
            raise ValueError("a point is not a number")
        # Fewer than three points are not a polygon; the decoder would take two for a box.
        if points.ndim == 1 and len(points) >= 6 and len(points) % 2 == 0:
            # The decoder walks along every edge, so a point far away would keep it busy forever.
            ends = np.array([width, height] * (len(points) // 2))
            polygons.append(points.clip(-ends, 2 * ends).tolist())
    return polygons


def to_rle(text: str, size: tuple[int, int]) -> dict[str, Any]:
    """Compressed run lengths of an outline that ``to_text`` wrote, for COCO's evaluation."""
    outline = json.loads(text)
    if isinstance(outline, dict):
        if isinstance(outline["counts"], str):
            return outline
        return coco_mask.frPyObjects(outline, *size)
    return coco_mask.merge(coco_mask.frPyObjects(outline, *size))


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run lengths of a mask (H, W) of zeros and ones."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = rle["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(length) for length in rle["size"]], "counts": counts}


def decode(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> torch.Tensor:
    """Masks of run lengths: uint8 (N, H, W) of zeros and ones."""
    if not rles:
        return torch.zeros(0, *size, dtype=torch.uint8)
    return torch.from_numpy(coco_mask.decode(list(rles)).transpose(2, 0, 1).copy())


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Boxes around the pixels of masks (N, H, W): float32 (N, 4) x0 y0 x1 y1, 0 for empty masks."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks != 0, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            box.copy_(torch.cat(ends))
    return boxes


def encode_original(mask: torch.Tensor, box: torch.Tensor, meta: dict[str, Any]) -> dict[str, Any]:
    """Compressed run lengths, in the original image, of a mask found in a letterboxed one.

    The probabilities are resized, so the outline runs between the network's pixels. That is done
    only around the box, since a large image has far more pixels than its objects.

    Args:
        mask: (H, W) at the network's input, above one half inside the object.
        box: (4,) x0 y0 x1 y1 in the original image, around the object.
        meta: as for ``tasks.detection.geometry.to_original``.
    """
    height, width = meta["size"].tolist()
    (scale_x, scale_y), (left, top) = meta["scale"].tolist(), meta["offset"].round().int().tolist()
    rows, columns = round(height * scale_y), round(width * scale_x)
    window = mask[top : top + rows, left : left + columns]
    x0, y0, x1, y1 = box.tolist()
    x, y = _around(x0, x1, 1 / scale_x, width), _around(y0, y1, 1 / scale_y, height)
    # From -1 to 1 between the outer borders of the window's pixels, as align_corners=False means.
    places = (
        (torch.arange(span.start, span.stop, dtype=window.dtype) + 0.5) * 2 / length - 1
        for span, length in ((y, height), (x, width))
    )
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], -1)
    resized = grid_sample(
        window[None, None], grid[None], padding_mode="border", align_corners=False
    )
    whole = np.zeros((height, width), dtype=np.uint8, order="F")
    whole[y, x] = (resized[0, 0] > 0.5).numpy()
    return encode(whole)


def _around(low: float, high: float, margin: float, length: int) -> slice:
    """The pixels from ``low`` to ``high`` and ``margin`` more on both sides, at least one."""
    first = min(max(0, math.floor(low - margin)), length - 1)
    return slice(first, max(first + 1, min(length, math.ceil(high + margin))))
