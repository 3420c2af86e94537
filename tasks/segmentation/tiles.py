"""Segmenting a picture in tiles: blended where they overlap, in memory that the tile bounds."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from data.tiles import Tiles, Window

VALUES = 2**23  # of logits kept at a time: wider pictures are worked through in several bands


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
