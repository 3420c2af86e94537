"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data.check import check_splits, read_all
from engine.loaders import count_workers
from tasks.classification.dataset import Reader
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import ClassificationData


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Attributes:
        problems: a sentence per bad sample, naming the file.
        images: number of good samples of each class.
        sizes: number of good samples of each (height, width).
        samples: number of all samples read.
    """

    problems: list[str]
    images: list[int]
    sizes: Counter[tuple[int, int]]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """The number of images of each class, and the sizes."""
        width = max(map(len, classes))
        rows = [
            f"{name:<{width}}  {count} images" + ("" if count else ", so it can't be learnt")
            for name, count in zip(classes, self.images, strict=True)
        ]
        if not self.sizes:
            return rows
        heights, widths = zip(*self.sizes, strict=True)
        (height, length), count = self.sizes.most_common(1)[0]
        return [
            *rows,
            f"sizes: {min(heights)} to {max(heights)} pixels high, {min(widths)} to {max(widths)} "
            f"wide; {count} of them {height}x{length}",
        ]


def check_data(options: ClassificationOptions, data: ClassificationData) -> int:
    """Read every sample of both splits and print what was found; returns the exit status."""
    splits = {"train": data.train, "val": data.val}
    readers = {name: Reader(rows, len(data.classes)) for name, rows in splits.items()}
    workers = count_workers(options.num_workers, len(data.train))
    return check_splits(readers, survey, data.classes, workers)


def survey(reader: Reader, num_workers: int = 0) -> Survey:
    """Decode every sample completely, as it is stored, and count classes and sizes."""
    problems: list[str] = []
    images = [0] * reader.num_classes
    sizes: Counter[tuple[int, int]] = Counter()
    for measured, problem in read_all(partial(_measure, reader), len(reader), num_workers):
        if problem:
            problems.append(problem)
        else:
            label, size = measured
            images[label] += 1
            sizes[size] += 1
    return Survey(problems, images, sizes, len(reader))


def _measure(reader: Reader, index: int) -> tuple[int, tuple[int, int]]:
    """A sample's label and (height, width)."""
    image, label = reader.read(index)
    return label, (image.shape[1], image.shape[2])
