"""Clips: cut from the videos of a table of rows, augmented for training, and batched."""

from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors

from data.decode import SampleError, cell_name
from data.stream import SampleKey, sample_randomness
from tasks.video.clips import ClipOptions, clip_numbers, is_short, segment
from tasks.video.decoding.base import Video
from tasks.video.decoding.open import Opener, torchcodec_decoder
from tasks.video.transforms import EvalTransform, TrainTransform

Row = dict[str, Any]  # video, label, start, end


class Reader:
    """The videos of a split.

    Args:
        rows: with the columns video, label, start and end.
        opener: opens a cell of the column video.
        decoder: auto, pyav or torchcodec.

    Raises:
        UserError: the decoder can't be loaded.
    """

    def __init__(self, rows: datasets.Dataset, opener: Opener, decoder: str = "auto") -> None:
        if decoder == "torchcodec":
            torchcodec_decoder()  # now, rather than at the first sample
        self.rows, self.opener, self.decoder = rows, opener, decoder

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> Video:
        """The whole video of a sample, to be closed by the caller.

        Raises:
            SampleError: it is missing, or not a video; the message names the file.
        """
        row = self.rows[index]
        return self.opener(row["video"], _name(row, index), self.decoder)

    def segment(self, video: Video, index: int) -> tuple[int, int]:
        """First frame of a sample within its video, and the one after its last.

        Raises:
            SampleError: there is no frame between its start and end.
        """
        row = self.rows[index]
        first, stop = segment(video.times, row["start"], row["end"])
        if first == stop:
            raise SampleError(
                f"{_name(row, index)} has no frame between {row['start']} and {row['end']} "
                f"seconds, since it has {len(video.times)} frames: correct its start and end, or "
                "remove it."
            )
        return first, stop

    def label(self, index: int) -> int:
        """The class of a sample."""
        return self.rows[index]["label"]

    def name(self, index: int) -> str:
        """The video's file, or the sample's number where there is no file."""
        return _name(self.rows[index], index)


def _name(row: Row, index: int) -> str:
    return cell_name(row["video"], f"video of sample {index}")


class TrainDataset(Dataset):
    """Clips from random places of the videos, augmented; a sample's random state is its own.

    Args:
        reader: of the training split.
        clip: length and spacing of the clips.
        transform: random from torch's generator alone.
        seed: the run's seed.
    """

    def __init__(
        self, reader: Reader, clip: ClipOptions, transform: TrainTransform, seed: int
    ) -> None:
        self.reader, self.clip, self.transform, self.seed = reader, clip, transform, seed

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample of the stream.

        Returns:
            {"video": uint8 (T, 3, H, W), "label": int, "looped": bool}; looped if the video is too
            short for a clip, so that frames repeat.

        Raises:
            SampleError: the clip can't be decoded completely; the message names the file.
        """
        with sample_randomness(self.seed, key), self.reader.open(key.index) as video:
            first, stop = self.reader.segment(video, key.index)
            times = video.times[first:stop]
            numbers = first + clip_numbers(times, self.clip, torch.rand(()).item())
            frames = video.read(numbers, self.transform.draw_short_side())
            clip = self.transform(tv_tensors.Video(frames))
        label = self.reader.label(key.index)
        return {"video": clip, "label": label, "looped": is_short(times, self.clip)}

    def name(self, index: int) -> str:
        """The video's file."""
        return self.reader.name(index)


class EvalDataset(Dataset):
    """The clips of a video that are scored, evenly spaced over it, each in one or more windows.

    Args:
        reader: of the validation split.
        clip: length, spacing and number of the clips.
        transform: cuts the windows.
    """

    def __init__(self, reader: Reader, clip: ClipOptions, transform: EvalTransform) -> None:
        self.reader, self.clip, self.transform = reader, clip, transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a number.

        Returns:
            {"video": uint8 (clips x windows, T, 3, H, W), "label": int}.

        Raises:
            SampleError: a clip can't be decoded completely; the message names the file.
        """
        with self.reader.open(index) as video:
            first, stop = self.reader.segment(video, index)
            times = video.times[first:stop]
            places = self.clip.positions()
            numbers = [first + clip_numbers(times, self.clip, place) for place in places]
            # In one go: the clips share frames, or the way to them.
            frames = video.read(np.concatenate(numbers), self.transform.short_side)
        clips = frames.split(self.clip.frames)
        windows = torch.cat([self.transform(tv_tensors.Video(clip)) for clip in clips])
        return {"video": windows, "label": self.reader.label(index)}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples.

    Returns:
        {"video": uint8 (B, T, 3, H, W), "label": int64 (B,), "looped": bool (B,)}; of evaluation
        {"video": uint8 (B, clips x windows, T, 3, H, W), "label": int64 (B,)}.
    """
    return default_collate(samples)  # in a worker it stacks right into shared memory
