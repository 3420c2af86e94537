"""What every decoder of videos offers: frames by number, and an error that names the file."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from data.decode import SampleError


class Video(ABC):
    """An open video.

    Attributes:
        times: float64 (frames,), the seconds at which the frames are shown, ascending.
    """

    times: np.ndarray

    @abstractmethod
    def pictures(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """The frames of these numbers, ascending and distinct, as uint8 (3, H, W).

        Raises:
            SampleError: one of them can't be decoded; the message names the file.
        """

    def read(self, numbers: np.ndarray, short_side: int | None = None) -> torch.Tensor:
        """Frames in the order of ``numbers``, which may repeat.

        Each is resized as soon as it is decoded, antialiased, so that the large ones aren't all
        kept. libswscale could resize while it converts to RGB; for 320x240 it takes 1.6 times as
        long as converting, and resizing with torch, and for 1280x720 three quarters.

        Args:
            numbers: frame numbers.
            short_side: pixels of the shorter side; None for the stored size.

        Returns:
            uint8 (len(numbers), 3, H, W).
        """
        distinct, order = np.unique(numbers, return_inverse=True)
        frames: list[torch.Tensor] = []
        size: list[int] | None = None
        for picture in self.pictures(distinct):
            if size is None:
                height, width = picture.shape[1:]
                factor = 1.0 if short_side is None else short_side / min(height, width)
                size = [max(1, round(height * factor)), max(1, round(width * factor))]
            # Also where the size changes within a video: a clip has one.
            frames.append(F.resize(picture, size, antialias=True))
        return torch.stack(frames)[torch.from_numpy(order)]

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Free the file and the decoder."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def broken(name: str, error: Exception | str) -> SampleError:
    """The error of a video that can't be decoded."""
    reason = str(getattr(error, "strerror", None) or error).partition("\n")[0].rstrip(".")
    return SampleError(f"{name} can't be decoded ({reason}): replace it or remove it.")
