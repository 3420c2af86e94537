"""``--check_data``: reading every video before training, to find what is bad."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data.check import Look, Suspicion, read_all, run_check
from data.faults import Fault
from engine.loaders import count_workers
from tasks.video.clips import ClipOptions, is_short
from tasks.video.dataset import Reader
from tasks.video.options import VideoOptions
from tasks.video.sources import load_data


@dataclass(frozen=True)
class VideoSurvey:
    """What decoding every video of a data set has shown.

    Attributes:
        faults: of the videos that can't be used.
        looks: what each video shows, None for one that can't be used.
        frames: int64 (N,), number of frames of each good sample, between its start and end.
        seconds: float64 (N,), duration of each good sample.
        labels: int64 (N,), class of each good sample.
        short: number of good samples that are too short for a clip, so that frames repeat.
        samples: number of all samples read.
    """

    faults: list[Fault]
    looks: list[Look | None]
    frames: np.ndarray
    seconds: np.ndarray
    labels: np.ndarray
    short: int
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """Range and median of lengths and rates, and the number of videos of each class."""
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

    def suspicions(self, classes: Sequence[str], reader: Reader) -> list[Suspicion]:
        """Classes without a video."""
        counts = np.bincount(self.labels, minlength=len(classes))
        absent = [name for name, count in zip(classes, counts, strict=True) if not count]
        hint = "can't be learnt or scored"
        return [Suspicion("classes without videos", hint, absent)] if absent else []


def _range(values: np.ndarray, digits: int) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:.{digits}f} to {high:.{digits}f}, median {middle:.{digits}f}"


def check_data(options: VideoOptions) -> int:
    """Read every video of both splits and print what was found; returns the exit status."""
    return run_check(
        options,
        load_data,
        lambda data: {
            "train": Reader(data.train, data.open, options.decoder),
            "val": Reader(data.val, data.open, options.decoder),
        },
        lambda data, reader, workers: survey(ClipOptions.of(options), reader, workers),
        partial(count_workers, options.num_workers),
    )


def survey(clip: ClipOptions, reader: Reader, num_workers: int = 0) -> VideoSurvey:
    """Decode every frame of every sample and measure the samples."""
    faults: list[Fault] = []
    looks: list[Look | None] = []
    good: list[tuple[int, float, int, bool]] = []
    for measured, fault in read_all(partial(_measure, reader, clip), reader, num_workers):
        if fault:
            faults.append(fault)
            looks.append(None)
        else:
            good.append(measured[:4])
            looks.append(measured[4])
    frames, seconds, labels, short = zip(*good, strict=True) if good else ((), (), (), ())
    return VideoSurvey(
        faults,
        looks,
        np.array(frames, dtype=np.int64),
        np.array(seconds, dtype=np.float64),
        np.array(labels, dtype=np.int64),
        sum(short),
        len(reader),
    )


def _measure(reader: Reader, clip: ClipOptions, index: int) -> tuple[int, float, int, bool, Look]:
    """A sample's frames, seconds and label, whether it is too short for a clip, and its look."""
    with reader.open(index) as sample:
        look = Look.of(sample.video.frames(np.arange(sample.first, sample.stop)))
    times, whole = sample.times, sample.video.times
    frame = (whole[-1] - whole[0]) / max(1, len(whole) - 1)
    seconds = float(times[-1] - times[0] + (frame or 1.0))
    return len(times), seconds, sample.label, is_short(times, clip), look
