"""Videos that are given from Python: paths, or clips that are already decoded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errors import UserError
from tasks.video.decoding.base import Video
from tasks.video.decoding.open import FOLDER_RATE, open_video


class DecodedVideo(Video):
    """Frames in memory.

    Args:
        pixels: uint8 (T, 3, H, W).
    """

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.times = pixels, np.arange(len(pixels)) / FOLDER_RATE

    def frames(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """These frames."""
        yield from self.pixels[torch.from_numpy(numbers)]


@contextlib.contextmanager
def as_video(media: Any) -> Iterator[Video]:
    """A video in any usual form, open.

    Raises:
        UserError: it can't be decoded, or is none.
    """
    if isinstance(media, str | Path):
        with open_video({"path": str(media), "bytes": None}, str(media)) as video:
            yield video
        return
    if isinstance(media, np.ndarray) and media.ndim == 4:
        media = torch.from_numpy(np.array(media)).movedim(-1, 1)
    is_clip = isinstance(media, torch.Tensor) and media.dtype == torch.uint8 and media.ndim == 4
    if not (is_clip and len(media) and media.shape[1] == 3):
        raise UserError(
            f"A {type(media).__name__} is no video: give a path, a uint8 array (T, H, W, 3) or a "
            "uint8 tensor (T, 3, H, W)."
        )
    yield DecodedVideo(media)
