"""Videos as numbered frames: files through PyAV or torchcodec, and folders of pictures.

A video is a cell of a ``datasets.Video(decode=False)`` column: ``{"path": str, "bytes": bytes}``,
of which one may be None; the path of a folder is a video whose frames are pictures.

PyAV is the default. It brings its own FFmpeg, while torchcodec looks for the system's; and of AVI
files with B-frames, of which UCF101 has many, and of MPEG streams torchcodec 0.17 returned other
frames than asked for, or an error. It is therefore used for MP4, Matroska and WebM only, where it
returns exactly the same: choosing a decoder never changes a clip.
"""

import functools
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from data.decode import Cell, SampleError, read_image
from data.sources import PICTURES
from errors import UserError

# Folders of frames don't say how fast they were filmed; only `fps` and `start`, `end` need it.
FOLDER_RATE = 25.0
EXACT_IN_TORCHCODEC = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
CHUNK = 8  # frames that torchcodec decodes at a time at full size


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


def open_video(cell: Cell, name: str, decoder: str = "auto") -> Video:
    """Open a video file, the bytes of one, or a folder of frames.

    Args:
        cell: path or bytes.
        name: what a message calls the video.
        decoder: pyav, torchcodec (for the containers in which it is exact), or auto: pyav.

    Raises:
        SampleError: it is missing, or no video; the message names it.
        UserError: torchcodec was asked for and can't be loaded.
    """
    if cell["bytes"] is None and Path(cell["path"]).is_dir():
        return FrameFolder(Path(cell["path"]))
    from data.video_pyav import PyavVideo

    source = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
    video = PyavVideo(source, name)
    if decoder != "torchcodec" or video.kind not in EXACT_IN_TORCHCODEC:
        return video
    with video:
        return TorchcodecVideo(cell, name, video.times)


class FrameFolder(Video):
    """A folder of pictures, one per frame, in the order of the numbers in their names."""

    def __init__(self, folder: Path) -> None:
        files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
        self.files = sorted((p for p in files if not p.name.startswith(".")), key=_by_numbers)
        if not self.files:
            raise SampleError(f"{folder} holds no frames: put pictures into it, or remove it.")
        self.times = np.arange(len(self.files)) / FOLDER_RATE

    def pictures(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """Decode the pictures of these frames."""
        for path in (str(self.files[number]) for number in numbers):
            yield read_image({"path": path, "bytes": None}, path)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """A key that sorts frame10 after frame9."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", path.stem)]


class TorchcodecVideo(Video):
    """A file decoded by torchcodec, its frames numbered and timed as PyAV does.

    Args:
        cell: path or bytes.
        name: what a message calls the video.
        times: when the frames are shown.
    """

    def __init__(self, cell: Cell, name: str, times: np.ndarray) -> None:
        decoder = torchcodec_decoder()
        self.name, self.times = name, times
        source = cell["path"] if cell["bytes"] is None else cell["bytes"]
        try:
            self.decoder = decoder(source, num_ffmpeg_threads=1)
        except Exception as error:
            raise broken(name, error) from None

    def pictures(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """Decode these frames, a few at a time."""
        for first in range(0, len(numbers), CHUNK):
            try:
                frames = self.decoder.get_frames_at(numbers[first : first + CHUNK].tolist()).data
            except Exception as error:  # RuntimeError or IndexError, as far as was seen
                raise broken(self.name, error) from None
            yield from frames


@functools.cache
def torchcodec_decoder() -> type:
    """torchcodec's VideoDecoder.

    Raises:
        UserError: torchcodec isn't installed, or doesn't find the FFmpeg it needs.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # RuntimeError where FFmpeg is missing
        why = "is not installed" if isinstance(error, ImportError) else "doesn't find its FFmpeg"
        raise UserError(
            f"torchcodec {why}: install it and FFmpeg, or decode with pyav instead."
        ) from None
    return VideoDecoder


def broken(name: str, error: Exception | str) -> SampleError:
    """The error of a video that can't be decoded."""
    reason = str(getattr(error, "strerror", None) or error).partition("\n")[0].rstrip(".")
    return SampleError(f"{name} can't be decoded ({reason}): replace it or remove it.")
