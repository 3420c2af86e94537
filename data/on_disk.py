"""Pictures too large to be kept in memory while tile after tile of them is looked at."""

import tempfile
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from data.decode import Cell, joined, rgb_bands
from data.tiles import Window
from errors import UserError

LARGE = 2**28  # bytes of a picture that is worth a file
ROWS = 256  # written at a time


class PictureOnDisk:
    """A picture in a temporary file, of which windows are read.

    Args:
        size: (height, width).
        bands: uint8 (rows, W, 3) each, from top to bottom.

    Attributes:
        shape: (3, H, W).

    Raises:
        UserError: there is no space for it.
    """

    def __init__(self, size: tuple[int, int], bands: Iterable[np.ndarray]) -> None:
        self.shape = 3, *size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the picture is used)
        for band in bands:
            self._write(np.ascontiguousarray(band).data)

    def _write(self, pixels: memoryview) -> None:
        try:
            self._file.write(pixels)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"A large picture can't be kept in {tempfile.gettempdir()} ({error.strerror}): "
                "make space there, or set TMPDIR to another folder."
            ) from None

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
    if picture.numel() <= LARGE:
        return picture
    bands = (rows.permute(1, 2, 0).numpy() for rows in picture.split(ROWS, 1))
    return PictureOnDisk(picture.shape[1:], bands)


def read_to_disk_if_large(cell: Cell, name: str) -> Tensor | PictureOnDisk:
    """Decode an image as ``data.decode.read_image``; of a large one only the decoder has it all.

    Raises:
        SampleError: as there.
        UserError: there is no space for it.
    """
    with rgb_bands(cell, name) as (size, bands):
        if isinstance(bands, Tensor):
            return on_disk_if_large(bands)
        large = 3 * size[0] * size[1] > LARGE
        return PictureOnDisk(size, bands) if large else joined(size, bands)
