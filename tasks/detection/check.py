"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from data.check import check_splits
from data.decode import SampleError
from engine.loaders import count_workers
from tasks.detection.dataset import Reader
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData

SIZES = ("small", "medium", "large")
BORDERS = (32.0**2, 96.0**2)  # areas in pixels at which COCO calls an object medium and large


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Args:
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
    """Decode every image and every mask as stored, and count the boxes of each class.

    Args:
        reader: of a split.
        num_workers: loader workers.
        num_classes: how many classes the data set has.
    """
    counts_of = _BoxCounts(reader, num_classes)
    loader = DataLoader(counts_of, batch_size=16, num_workers=num_workers, collate_fn=list)
    problems: list[str] = []
    dropped: list[str] = []
    boxes = torch.zeros(num_classes, len(SIZES), dtype=torch.int64)
    images = torch.zeros(num_classes, dtype=torch.int64)
    crowds = empty = 0
    for batch in loader:
        for counts, num_crowds, left_out, problem in batch:
            if left_out:
                dropped.append(left_out)
            if problem:
                problems.append(problem)
                continue
            boxes += counts
            images += counts.sum(1) > 0
            crowds += num_crowds
            empty += int(counts.sum()) + num_crowds == 0
    return Survey(problems, dropped, boxes, images, crowds, empty, len(reader))


class _BoxCounts(Dataset):
    """For each sample its boxes by class and size, its crowds, and what is wrong with it."""

    def __init__(self, reader: Reader, num_classes: int) -> None:
        self.reader = reader
        self.shape = (num_classes, len(SIZES))

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str, str]:
        left_out = "; ".join(self.reader.rows[index]["dropped"])
        if left_out:
            left_out = f"{self.reader.name(index)}: {left_out}; left out."
        counts = torch.zeros(self.shape, dtype=torch.int64)
        try:
            _, truth = self.reader.read(index)
        except SampleError as error:
            return counts, 0, left_out, str(error)
        crowd = truth["iscrowd"] != 0
        labels, areas = truth["labels"][~crowd], truth["area"][~crowd]
        sizes = torch.bucketize(areas, torch.tensor(BORDERS, dtype=torch.float64), right=True)
        counts.index_put_((labels, sizes), torch.ones_like(labels), accumulate=True)
        return counts, int(crowd.sum()), left_out, ""
