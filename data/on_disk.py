"""Pictures too large to be kept in memory while tile after tile of them is looked at."""

import tempfile

import numpy as np
import torch
from torch import Tensor

from data.tiles import Window

LARGE = 2**28  # bytes of a picture that is worth a file
ROWS = 256  # written at a time


class PictureOnDisk:
    """A picture in a temporary file, of which windows are read.

    Args:
        picture: uint8 (3, H, W).

    Attributes:
        shape: (3, H, W).
    """

    def __init__(self, picture: Tensor) -> None:
        self.shape = picture.shape
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the picture is used)
        for rows in picture.split(ROWS, 1):
            self._file.write(rows.permute(1, 2, 0).contiguous().numpy().data)
        self._file.flush()

    def read(self, window: Window, every: int = 1) -> Tensor:
        """A window, uint8 (3, h, w), or every so many rows and columns of it."""
        _, _, width = self.shape
        rows = []
        for row in range(window.top, window.top + window.height, every):
            self._file.seek(3 * (row * width + window.left))
            pixels = np.frombuffer(self._file.read(3 * window.width), np.uint8)
            rows.append(pixels.reshape(window.width, 3)[::every])
        return torch.from_numpy(np.stack(rows)).permute(2, 0, 1)

    def thinned(self, every: int) -> Tensor:
        """Every so many rows and columns: uint8 (3, h, w)."""
        return self.read(Window(0, 0, *self.shape[1:]), every)


def on_disk_if_large(picture: Tensor) -> Tensor | PictureOnDisk:
    """The picture itself, or one in a file."""
    return PictureOnDisk(picture) if picture.numel() > LARGE else picture
