"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data.check import Look, Suspicion, read_all, run_check
from data.faults import Fault
from engine.loaders import count_workers
from tasks.detection.dataset import Reader
from tasks.detection.options import DetectionOptions
from tasks.detection.sources import load_data

SIZES = ("small", "medium", "large")
BORDERS = (32.0**2, 96.0**2)  # areas in pixels at which COCO calls an object medium and large


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Attributes:
        faults: of the samples that can't be used.
        looks: what each image shows, None for one that can't be used.
        dropped: a sentence per image of which boxes are left out, naming file and boxes.
        tiny: numbers of the good samples with a box of a pixel or less in width or height.
        boxes: int64 (num_classes, 3): small, medium and large objects of each class, no crowds.
        images: int64 (num_classes,): good samples in which each class occurs.
        crowds: boxes that are crowds or difficult.
        empty: good samples without an object or a crowd.
        samples: all samples read.
    """

    faults: list[Fault]
    looks: list[Look | None]
    dropped: list[str]
    tiny: list[int]
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
        return [*rows, last]

    def suspicions(self, classes: Sequence[str], reader: Reader) -> list[Suspicion]:
        """Boxes that are left out or tiny, and classes without any."""
        absent = [n for n, count in zip(classes, self.boxes.sum(1), strict=True) if not count]
        tiny = [reader.name(number) for number in self.tiny]
        found = [
            Suspicion("images with boxes left out", "for these reasons", self.dropped),
            Suspicion("classes without objects", "can't be learnt or scored", absent),
            Suspicion("images with boxes of a pixel", "or less, in width or height", tiny),
        ]
        return [suspicion for suspicion in found if suspicion.seen]


def check_data(options: DetectionOptions) -> int:
    """Read every sample of both splits and print what was found; returns the exit status."""
    return run_check(
        options,
        load_data,
        lambda data: {
            "train": Reader(data.train, options.needs_masks),
            "val": Reader(data.val, options.needs_masks),
        },
        lambda data, reader, workers: survey(reader, workers, len(data.classes)),
        partial(count_workers, options.num_workers),
    )


def survey(reader: Reader, num_workers: int, num_classes: int) -> Survey:
    """Decode every image and every outline as stored, and count the boxes of each class.

    Args:
        reader: of a split.
        num_workers: loader workers.
        num_classes: how many classes the data set has.
    """
    faults: list[Fault] = []
    looks: list[Look | None] = []
    tiny: list[int] = []
    boxes = torch.zeros(num_classes, len(SIZES), dtype=torch.int64)
    images = torch.zeros(num_classes, dtype=torch.int64)
    crowds = empty = 0
    found = read_all(partial(_count, reader, num_classes), reader, num_workers)
    for number, (counted, fault) in enumerate(found):
        if fault:
            faults.append(fault)
            looks.append(None)
            continue
        counts, num_crowds, shortest, look = counted
        looks.append(look)
        boxes += counts
        images += counts.sum(1) > 0
        crowds += num_crowds
        empty += int(counts.sum()) + num_crowds == 0
        if shortest <= 1:
            tiny.append(number)
    dropped = [
        f"{reader.name(index)}: {'; '.join(reasons)}"
        for index, reasons in enumerate(reader.rows["dropped"])
        if reasons
    ]
    return Survey(faults, looks, dropped, tiny, boxes, images, crowds, empty, len(reader))


def _count(reader: Reader, num_classes: int, index: int) -> tuple[torch.Tensor, int, float, Look]:
    """A sample's objects by class and size, int64 (num_classes, 3); its number of crowds; the
    shortest side of its boxes in pixels; what its image shows."""
    image, truth = reader.read(index)
    crowd = truth["iscrowd"] != 0
    labels, areas = truth["labels"][~crowd], truth["area"][~crowd]
    sizes = torch.bucketize(areas, torch.tensor(BORDERS, dtype=torch.float64), right=True)
    counts = torch.zeros(num_classes, len(SIZES), dtype=torch.int64)
    counts.index_put_((labels, sizes), torch.ones_like(labels), accumulate=True)
    sides = truth["boxes"][:, 2:]
    shortest = float(sides.min()) if len(sides) else math.inf
    return counts, int(crowd.sum()), shortest, Look.of([image])
