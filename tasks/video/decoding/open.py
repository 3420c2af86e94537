"""Videos as numbered frames: files through PyAV or torchcodec, and folders of frames.

A video is a cell of a ``datasets.Video(decode=False)`` column: ``{"path": str, "bytes": bytes}``,
one of which may be None. The path may be a folder that holds a video's frames as image files.

PyAV is the default: it brings its own FFmpeg, while torchcodec looks for the system's. torchcodec
0.17 returned wrong frames, or errors, for MPEG streams and for AVI files with B-frames, of which
UCF101 has many. It is therefore used for MP4, Matroska and WebM only, where it returns exactly the
frames that PyAV does: choosing a decoder never changes a clip.
"""

import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from data.decode import Cell, SampleError, read_image
from data.folders import IMAGE_SUFFIXES, entries
from errors import UserError
from tasks.video.decoding.base import Video, broken
from tasks.video.decoding.pyav import PyavVideo

# Frames per second of folders, which don't say it; only ``fps``, ``start`` and ``end`` need it.
FOLDER_RATE = 25.0
EXACT_IN_TORCHCODEC = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
CHUNK = 8  # frames that torchcodec decodes at a time at full size

# Opens a cell of the column video, given a name for messages and a decoder.
OpenVideo = Callable[[Cell, str, str], Video]


def open_video(cell: Cell | None, name: str, decoder: str = "auto") -> Video:
    """Open a video file, the bytes of one, or a folder of frames.

    Args:
        cell: path or bytes.
        name: what messages call the video.
        decoder: auto (pyav), pyav, or torchcodec, which is used for the containers in which it is
            exact.

    Raises:
        SampleError: the video is missing or is not one; the message names it.
        UserError: torchcodec is wanted and can't be loaded.
    """
    if not cell or (cell["path"] is None and cell["bytes"] is None):
        raise SampleError(f"{name} holds no video: add one, or remove the sample.")
    if cell["bytes"] is None:
        path = Path(cell["path"])
        if path.is_dir():
            return FrameFolder(path)
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise SampleError(f"{name} is no regular file: replace it or remove it.")
    source = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
    video = PyavVideo(source, name)
    if decoder != "torchcodec" or video.kind not in EXACT_IN_TORCHCODEC:
        return video
    with video:
        return TorchcodecVideo(cell, name, video.times, video.stream.index)


class FrameFolder(Video):
    """A folder of image files, one per frame, in the order of the numbers in their names.

    Args:
        folder: holds the files.

    Raises:
        SampleError: it holds none; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        files = (path for path in entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        self.files = sorted(files, key=_by_numbers)
        if not self.files:
            raise SampleError(f"{folder} holds no frames: put image files into it, or remove it.")
        self.times = np.arange(len(self.files)) / FOLDER_RATE

    def frames(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """Decode the image files of these frames."""
        for path in (str(self.files[number]) for number in numbers):
            yield read_image({"path": path, "bytes": None}, path)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """A sorting key that puts frame10 after frame9."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", path.stem)]


class TorchcodecVideo(Video):
    """A file decoded by torchcodec; its frames have the numbers and times that PyAV gives them.

    Args:
        cell: path or bytes.
        name: what messages call the video.
        times: ``PyavVideo.times`` of the file.
        stream: index of the video stream in the file.

    Raises:
        SampleError: the file can't be decoded; the message names it.
        UserError: torchcodec can't be loaded.
    """

    def __init__(self, cell: Cell, name: str, times: np.ndarray, stream: int) -> None:
        decoder = torchcodec_decoder()
        self.name, self.times = name, times
        source = cell["path"] if cell["bytes"] is None else cell["bytes"]
        try:
            self.decoder = decoder(source, stream_index=stream, num_ffmpeg_threads=1)
        except Exception as error:
            raise broken(name, error) from None

    def frames(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """Decode these frames, a few at a time."""
        for first in range(0, len(numbers), CHUNK):
            try:
                frames = self.decoder.get_frames_at(numbers[first : first + CHUNK].tolist()).data
            except Exception as error:  # seen: RuntimeError and IndexError
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
        raise UserError(f"torchcodec {why}: install it and FFmpeg, or decode with pyav.") from None
    return VideoDecoder
