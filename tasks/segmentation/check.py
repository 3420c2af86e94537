"""``--check_data`` for segmentation: bad samples, and how common each class is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data.check import check_splits, read_all
from data.masks import IGNORE
from engine.loaders import count_workers
from tasks.segmentation.dataset import Reader
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import SegmentationData


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a split has shown.

    Attributes:
        problems: a sentence per bad sample, naming the file.
        pixels: int64 (num_classes + 1,): pixels of each class in the good samples, ignored last.
        images: int64 (num_classes,): good samples in which each class occurs.
        samples: number of samples read, the bad ones included.
    """

    problems: list[str]
    pixels: torch.Tensor
    images: torch.Tensor
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """A table: share of the pixels and number of images of each class."""
        shares = (100 * self.pixels / self.pixels.sum().clamp(min=1)).tolist()
        width = max(map(len, [*classes, "ignored"]))
        rows = [
            f"{name:<{width}}  {share:5.1f} % of pixels, in {count} images"
            for name, share, count in zip(classes, shares, self.images.tolist(), strict=False)
        ]
        return [*rows, f"{'ignored':<{width}}  {shares[-1]:5.1f} % of pixels"]


def check_data(options: SegmentationOptions, data: SegmentationData) -> int:
    """Read every sample of both splits, print the findings and return the exit status."""
    readers = {"train": Reader(data.train, data.rule), "val": Reader(data.val, data.rule)}
    workers = count_workers(options.num_workers, len(data.train))
    return check_splits(readers, survey, data.classes, workers)


def survey(reader: Reader, num_workers: int = 0, *, images: bool = True) -> Survey:
    """Decode every sample completely, as it is stored, and count the pixels of each class.

    Args:
        reader: of a split.
        num_workers: loader workers.
        images: whether to decode the images too, or the masks alone.
    """
    num_classes = reader.rule.num_classes
    problems: list[str] = []
    pixels = torch.zeros(num_classes + 1, dtype=torch.int64)
    occurs = torch.zeros(num_classes, dtype=torch.int64)
    for counts, problem in read_all(partial(_count, reader, images), len(reader), num_workers):
        if problem:
            problems.append(problem)
        else:
            pixels += torch.cat([counts[:num_classes], counts[IGNORE:]])
            occurs += counts[:num_classes] > 0
    return Survey(problems, pixels, occurs, len(reader))


def _count(reader: Reader, images: bool, index: int) -> torch.Tensor:
    """How often a sample's mask holds each value: int64 (256,)."""
    mask = reader.read(index)[1] if images else reader.read_mask(index)
    return torch.bincount(mask.flatten(), minlength=256)
