"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data.check import check_splits, read_all
from engine.loaders import count_workers
from tasks.detection.dataset import Reader
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData

SIZES = ("small", "medium", "large")
BORDERS = (32.0**2, 96.0**2)  # areas in pixels at which COCO calls an object medium and large


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Attributes:
        problems: a sentence per image that can't be used, naming the file.
        dropped: a sentence per image of which boxes are left out, naming file and boxes.
        boxes: int64 (num_classes, 3): small, medium and large objects of each class, no crowds.
        images: int64 (num_classes,): good samples in which each class occurs.
        crowds: boxes that are crowds or difficult.
        empty: good samples without an object or a crowd.
        samples: all samples read.
    """

    problems: list[str]
    dropped: list[str]
    boxes: torch.Tensor
    images: torch.Tensor
    crowds: int
    empty: int
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """A table: boxes and images of each class and how large the boxes are; what is left out."""
        width = max(map(len, classes))
        rows = []
        for name, counts, images in zip(classes, self.boxes, self.images.tolist(), strict=True):
            shares = (100 * counts / counts.sum().clamp(min=1)).tolist()
            sizes = ", ".join(f"{s:3.0f} % {size}" for s, size in zip(shares, SIZES, strict=True))
            rows.append(f"{name:<{width}}  {int(counts.sum()):6} boxes in {images} images: {sizes}")
        last = f"{self.empty} images without objects, {self.crowds} crowds or difficult objects"
        return [*rows, last, *self.dropped]


def check_data(options: DetectionOptions, data: DetectionData) -> int:
    """Read every sample of both splits and print what was found; returns the exit status."""
    splits = {"train": data.train, "val": data.val}
    readers = {name: Reader(rows, options.needs_masks) for name, rows in splits.items()}
    workers = count_workers(options.num_workers, len(data.train))
    count = partial(survey, num_classes=len(data.classes))
    return check_splits(readers, count, data.classes, workers)


def survey(reader: Reader, num_workers: int, num_classes: int) -> Survey:
    """Decode every image and every outline as stored, and count the boxes of each class.

    Args:
        reader: of a split.
        num_workers: loader workers.
        num_classes: how many classes the data set has.
    """
    problems: list[str] = []
    boxes = torch.zeros(num_classes, len(SIZES), dtype=torch.int64)
    images = torch.zeros(num_classes, dtype=torch.int64)
    crowds = empty = 0
    read = partial(_count, reader, num_classes)
    for counted, problem in read_all(read, len(reader), num_workers):
        if problem:
            problems.append(problem)
            continue
        counts, num_crowds = counted
        boxes += counts
        images += counts.sum(1) > 0
        crowds += num_crowds
        empty += int(counts.sum()) + num_crowds == 0
    dropped = [
        f"{reader.name(index)}: {'; '.join(reasons)}; left out."
        for index, reasons in enumerate(reader.rows["dropped"])
        if reasons
    ]
    return Survey(problems, dropped, boxes, images, crowds, empty, len(reader))


def _count(reader: Reader, num_classes: int, index: int) -> tuple[torch.Tensor, int]:
    """A sample's objects by class and size, int64 (num_classes, 3), and its number of crowds."""
    _, truth = reader.read(index)
    crowd = truth["iscrowd"] != 0
    labels, areas = truth["labels"][~crowd], truth["area"][~crowd]
    sizes = torch.bucketize(areas, torch.tensor(BORDERS, dtype=torch.float64), right=True)
    counts = torch.zeros(num_classes, len(SIZES), dtype=torch.int64)
    counts.index_put_((labels, sizes), torch.ones_like(labels), accumulate=True)
    return counts, int(crowd.sum())
