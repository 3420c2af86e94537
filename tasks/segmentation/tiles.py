"""Logits of large pictures, part by part: tiles blended where they overlap, and enlarging."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from data.tiles import Tiles, Window

VALUES = 2**23  # of logits kept at a time: larger pictures are worked through in several bands


def blended(
    logits_of: Callable[[Tensor], Tensor],
    picture: Tensor,
    tiles: Tiles,
    classes: int,
    at_once: int,
) -> Iterator[tuple[Window, Tensor]]:
    """The logits of a picture, in parts that cover it.

    Where tiles overlap, their logits are averaged, each with a weight that falls towards the
    tile's border. Tiles are computed row by row, and a row of the result leaves as soon as no tile
    to come shows it. Very wide pictures are worked through in bands of columns; the tiles at the
    borders of bands are computed twice.

    Args:
        logits_of: maps a batch of windows, uint8 (B, 3, h, w) on the CPU, to logits (B, K, h, w).
        picture: uint8 (3, H, W) on the CPU.
        tiles: their size and overlap.
        classes: K.
        at_once: windows in a batch.

    Yields:
        A part of the picture, and its logits (K, h, w), until the next part.
    """
    height, width = picture.shape[-2:]
    rows, columns = tiles.starts(height), tiles.starts(width)
    down, across = tiles.weights(height), tiles.weights(width)
    size = min(tiles.side, height), min(tiles.side, width)
    widest = max(2 * size[1], VALUES // (classes * size[0]))
    for left in range(0, width, widest):
        right = min(left + widest, width)
        inside = [n for n, x in enumerate(columns) if x < right and x + size[1] > left]
        buffer = None
        for row, top in enumerate(rows):
            for first in range(0, len(inside), at_once):
                part = inside[first : first + at_once]
                windows = [Window(top, columns[n], *size) for n in part]
                logits = logits_of(torch.stack([window.of(picture) for window in windows]))
                if buffer is None:
                    buffer = logits.new_zeros(logits.shape[1], size[0], right - left)
                for number, each in zip(part, logits, strict=True):
                    start, stop = max(left, columns[number]), min(right, columns[number] + size[1])
                    shown = slice(start - columns[number], stop - columns[number])
                    weight = down[row][:, None] * across[number][None, shown]
                    buffer[:, :, start - left : stop - left] += each[..., shown] * weight.to(each)
            below = rows[row + 1] if row + 1 < len(rows) else height
            yield Window(top, left, below - top, right - left), buffer[:, : below - top]
            still_open = buffer[:, below - top :].clone()
            buffer[:, : still_open.shape[1]] = still_open
            buffer[:, still_open.shape[1] :] = 0


def enlarged(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[Window, Tensor]]:
    """Logits at another resolution, in bands of rows, as bilinear interpolation gives them.

    In full size the logits of a photograph are many times as large as it: 12 megapixels and 21
    classes take 1 GB.

    Args:
        logits: (B, K, h, w).
        size: (H, W) of the result.

    Yields:
        A part of the result, and its logits (B, K, rows, W).
    """
    images, classes, height, width = logits.shape
    if (height, width) == tuple(size):
        yield Window(0, 0, *size), logits
        return
    # Between the middles of pixels, as interpolate with align_corners=False.
    places = (torch.arange(size[0], dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5
    places = places.clamp(0, height - 1)
    above = places.floor().long()
    below, share = (above + 1).clamp(max=height - 1), places - above
    above, below = above.to(logits.device), below.to(logits.device)
    share = share.to(logits)[:, None]
    values = VALUES * (16 if logits.is_cuda else 1)  # a GPU wants few launches
    rows = max(1, values // (images * classes * size[1]))
    for top in range(0, size[0], rows):
        band = slice(top, min(top + rows, size[0]))
        part = torch.lerp(logits[:, :, above[band]], logits[:, :, below[band]], share[band])
        count = band.stop - top
        if width != size[1]:
            part = F.interpolate(part, (count, size[1]), mode="bilinear", align_corners=False)
        yield Window(top, 0, count, size[1]), part
