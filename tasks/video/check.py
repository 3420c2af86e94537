"""``--check_data``: reading every video before training, to find what is bad."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data.check import check_splits
from data.decode import SampleError
from engine.loaders import count_workers
from tasks.video.clips import ClipOptions, is_short
from tasks.video.dataset import Reader
from tasks.video.options import VideoOptions
from tasks.video.sources import VideoData


@dataclass(frozen=True)
class VideoSurvey:
    """What decoding every video of a data set has shown.

    Args:
        problems: a sentence per bad video, naming the file.
        frames: int64, frames of each good sample (of its part between start and end).
        seconds: float64, duration of each good sample.
        labels: int64, class of each good sample.
        short: good samples with too few frames for one clip, so that frames repeat.
        samples: all samples read.
    """

    problems: list[str]
    frames: np.ndarray
    seconds: np.ndarray
    labels: np.ndarray
    short: int
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """Lengths and rates from the smallest over the median to the largest; videos per class."""
        lines = []
        if len(self.frames):
            rates = self.frames / self.seconds
            lines += [
                f"frames per video: {_range(self.frames, 0)}",
                f"frames per second: {_range(rates, 1)}",
                f"seconds per video: {_range(self.seconds, 1)}",
                f"too short for a clip, so that frames repeat: {self.short} videos",
            ]
        counts = np.bincount(self.labels, minlength=len(classes))
        width = max(map(len, classes))
        named = zip(classes, counts, strict=True)
        return lines + [f"{name:<{width}}  {count} videos" for name, count in named]


def _range(values: np.ndarray, digits: int) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:.{digits}f} to {high:.{digits}f}, median {middle:.{digits}f}"


def check_data(options: VideoOptions, data: VideoData) -> int:
    """Read every video of both splits and print what was found; returns the exit status."""
    splits, clip = {"train": data.train, "val": data.val}, ClipOptions.of(options)
    readers = {name: Reader(rows, data.open, options.decoder) for name, rows in splits.items()}
    workers = count_workers(options.num_workers, len(data.train))
    return check_splits(readers, partial(survey, clip), data.classes, workers)


def survey(clip: ClipOptions, reader: Reader, num_workers: int = 0) -> VideoSurvey:
    """Decode every frame of every sample, and measure the samples."""
    lengths = _Lengths(reader, clip)
    loader = DataLoader(lengths, batch_size=4, num_workers=num_workers, collate_fn=list)
    problems: list[str] = []
    good: list[tuple[int, float, int, bool]] = []
    for batch in loader:
        for found in batch:
            (problems if isinstance(found, str) else good).append(found)
    frames, seconds, labels, short = zip(*good, strict=True) if good else ((), (), (), ())
    return VideoSurvey(
        problems,
        np.array(frames, dtype=np.int64),
        np.array(seconds, dtype=np.float64),
        np.array(labels, dtype=np.int64),
        sum(short),
        len(reader),
    )


class _Lengths(Dataset):
    """For each sample (frames, seconds, label, too short), or the sentence that says what's bad."""

    def __init__(self, reader: Reader, clip: ClipOptions) -> None:
        self.reader, self.clip = reader, clip

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[int, float, int, bool] | str:
        try:
            with self.reader.open(index) as sample:
                for _ in sample.video.frames(np.arange(sample.first, sample.stop)):
                    pass
        except SampleError as error:
            return str(error)
        times, whole = sample.times, sample.video.times
        frame = (whole[-1] - whole[0]) / max(1, len(whole) - 1)
        seconds = float(times[-1] - times[0] + (frame or 1.0))
        return len(times), seconds, sample.label, is_short(times, self.clip)
