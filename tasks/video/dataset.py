"""Clips: cut from the videos of a table of rows, augmented for training, and batched."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torchvision import tv_tensors

from data.decode import SampleError
from data.samples import ReaderDataset, RowReader
from data.samples import collate as collate_samples
from data.stream import SampleKey, sample_randomness
from tasks.video.clips import ClipOptions, clip_numbers, is_short, segment
from tasks.video.decoding.base import Video
from tasks.video.decoding.open import OpenVideo, torchcodec_decoder

Transform = Callable[[tv_tensors.Video], torch.Tensor]


@dataclass(frozen=True)
class OpenSample:
    """A sample while its video is open.

    Attributes:
        video: the whole video, of which the sample may be a part.
        first: the sample's first frame within the video.
        stop: the frame after its last one.
        label: its class.
    """

    video: Video
    first: int
    stop: int
    label: int

    @property
    def times(self) -> np.ndarray:
        """The seconds at which the sample's frames are shown, ascending: float64 (frames,)."""
        return self.video.times[self.first : self.stop]

    def read(self, numbers: np.ndarray, short_side: int | None) -> torch.Tensor:
        """Frames of the sample, numbered from its first one; see ``Video.read``."""
        return self.video.read(self.first + numbers, short_side)


class Reader(RowReader):
    """The videos and labels of a split.

    Args:
        rows: with the columns video, label, start and end.
        open_video: opens a cell of the column video.
        decoder: auto, pyav or torchcodec.

    Raises:
        UserError: the decoder can't be loaded.
    """

    media = "video"

    def __init__(
        self, rows: datasets.Dataset, open_video: OpenVideo, decoder: str = "auto"
    ) -> None:
        if decoder == "torchcodec":
            torchcodec_decoder()  # fails here rather than at the first sample
        super().__init__(rows)
        self.open_video, self.decoder = open_video, decoder

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[OpenSample]:
        """Open a sample's video; it is closed at the end of the ``with`` block.

        Raises:
            SampleError: the file is missing or not a video, or has no frame between the sample's
                start and end; the message names the file.
        """
        row = self.rows[index]  # once per sample: the row may hold all bytes of the video
        name = self.name_of(row, index)
        with self.open_video(row["video"], name, self.decoder) as video:
            first, stop = segment(video.times, row["start"], row["end"])
            if first == stop:
                raise SampleError(
                    f"{name} has no frame between {row['start']} and {row['end']} seconds, since "
                    f"it has {len(video.times)} frames: correct its start and end, or remove it."
                )
            yield OpenSample(video, first, stop, row["label"])


class TrainDataset(ReaderDataset):
    """Clips from random places of the videos, augmented; a sample's random state is its own.

    Args:
        reader: of the training split.
        clip: length and spacing of the clips.
        short_side: range of the length in pixels, drawn for each clip, to which the shorter side
            of its frames is resized; None for frames as they are stored.
        transform: of the resized clip, random from torch's generator alone.
        seed: the run's seed.
    """

    def __init__(
        self,
        reader: Reader,
        clip: ClipOptions,
        short_side: tuple[int, int] | None,
        transform: Transform,
        seed: int,
    ) -> None:
        super().__init__(reader)
        self.clip, self.short_side = clip, short_side
        self.transform, self.seed = transform, seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample of the stream.

        Returns:
            {"video": uint8 (T, 3, H, W), "label": int, "looped": bool}; looped if the video is too
            short for a clip, so that frames repeat.

        Raises:
            SampleError: the clip can't be decoded completely; the message names the file.
        """
        with sample_randomness(self.seed, key), self.reader.open(key.index) as sample:
            numbers = clip_numbers(sample.times, self.clip, torch.rand(()).item())
            frames = sample.read(numbers, self._draw_short_side())
            clip = self.transform(tv_tensors.Video(frames)).as_subclass(torch.Tensor)
        looped = is_short(sample.times, self.clip)
        return {"video": clip, "label": sample.label, "looped": looped}

    def _draw_short_side(self) -> int | None:
        if self.short_side is None:
            return None
        low, high = self.short_side
        return int(torch.randint(low, high + 1, ()))


class EvalDataset(ReaderDataset):
    """The clips of a video that are scored, evenly spaced over it, each in one or more windows.

    Args:
        reader: of the validation split.
        clip: length, spacing and number of the clips.
        short_side: pixels to which the shorter side of the frames is resized.
        windows: cuts the windows (N, T, 3, h, w) from a resized clip (T, 3, H, W).
    """

    def __init__(
        self, reader: Reader, clip: ClipOptions, short_side: int, windows: Transform
    ) -> None:
        super().__init__(reader)
        self.clip, self.short_side, self.windows = clip, short_side, windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a number.

        Returns:
            {"video": uint8 (clips x windows, T, 3, H, W), "label": int}.

        Raises:
            SampleError: a clip can't be decoded completely; the message names the file.
        """
        with self.reader.open(index) as sample:
            numbers = self.clip.numbers(sample.times)
            views = read_views(sample.read, numbers, self.short_side, self.windows)
        return {"video": views, "label": sample.label}


def read_views(
    read: Callable[[np.ndarray, int], torch.Tensor],
    clips: list[np.ndarray],
    short_side: int,
    windows: Transform,
) -> torch.Tensor:
    """Clips of a video, each in its windows: uint8 (clips x windows, T, 3, H, W).

    Args:
        read: decodes frames; see ``Video.read``.
        clips: the numbers of each clip's frames.
        short_side: pixels to which the shorter side of the frames is resized.
        windows: cuts the windows (N, T, 3, h, w) from a resized clip (T, 3, H, W).
    """
    # All at once, since the clips share frames or the way to them.
    frames = read(np.concatenate(clips), short_side)
    return torch.cat([windows(clip) for clip in frames.split(len(clips[0]))])


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples.

    Returns:
        {"video": uint8 (B, T, 3, H, W), "label": int64 (B,), "looped": bool (B,)}; of evaluation
        {"video": uint8 (B, clips x windows, T, 3, H, W), "label": int64 (B,)}.
    """
    return collate_samples(samples, "video")
