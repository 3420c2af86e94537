"""Windows that cover a picture, and the weights with which what they show is blended."""

from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: Any) -> Tensor:
        """This part of a picture (..., H, W), which may be a ``data.on_disk.PictureOnDisk``."""
        if not isinstance(picture, Tensor):
            return picture.read(self)
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Tiles:
    """Squares of one size over a picture, evenly spaced, each showing part of the next.

    Attributes:
        side: pixels of a square; a smaller picture is one window.
        overlap: share of a square that the next one shows too, at least; up to one half.
    """

    side: int
    overlap: float

    def starts(self, length: int) -> list[int]:
        """Where the windows along an axis of so many pixels begin."""
        if length <= self.side:
            return [0]
        step = max(1, round(self.side * (1 - self.overlap)))
        steps = ceil((length - self.side) / step)
        return [round(number * (length - self.side) / steps) for number in range(steps + 1)]

    def windows(self, height: int, width: int) -> list[Window]:
        """The windows over a picture, row by row."""
        size = min(self.side, height), min(self.side, width)
        return [Window(y, x, *size) for y in self.starts(height) for x in self.starts(width)]

    def weights(self, length: int) -> Tensor:
        """The weight of every pixel of every window along an axis: float64 (windows, pixels).

        They fall towards the ends of a window over the overlap, since the network sees less around
        a pixel there. Over all windows they add up to 1 at every pixel of the picture.
        """
        starts, pixels = self.starts(length), min(self.side, length)
        place = torch.arange(pixels, dtype=torch.float64) + 0.5
        ramp = torch.minimum(place, pixels - place)
        ramp = (ramp / max(self.overlap * pixels, 0.5)).clamp(max=1)
        total = torch.zeros(length, dtype=torch.float64)
        for start in starts:
            total[start : start + pixels] += ramp
        return torch.stack([ramp / total[start : start + pixels] for start in starts])
