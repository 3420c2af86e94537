"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from data.check import check_splits
from data.decode import SampleError
from data.masks import IGNORE
from engine.loaders import count_workers
from tasks.segmentation.dataset import Reader
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import SegmentationData


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Args:
        problems: a sentence per bad sample, naming the file.
        pixels: int64 (num_classes + 1,): pixels of each class in the good samples, ignored last.
        images: int64 (num_classes,): good samples in which each class occurs.
        samples: all samples read.
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
    """Read every sample of both splits and print what was found; returns the exit status."""
    readers = {"train": Reader(data.train, data.rule), "val": Reader(data.val, data.rule)}
    workers = count_workers(options.num_workers, len(data.train))
    return check_splits(readers, survey, data.classes, workers)


def survey(reader: Reader, num_workers: int = 0, *, images: bool = True) -> Survey:
    """Decode every sample to the last pixel, as it is stored, and count the classes' pixels.

    Args:
        reader: of a split.
        num_workers: loader workers.
        images: whether to decode the images too, or the masks alone.
    """
    counts = _PixelCounts(reader, images)
    loader = DataLoader(counts, batch_size=16, num_workers=num_workers, collate_fn=list)
    num_classes = reader.rule.num_classes
    problems: list[str] = []
    pixels = torch.zeros(num_classes + 1, dtype=torch.int64)
    occurs = torch.zeros(num_classes, dtype=torch.int64)
    for batch in loader:
        for found in batch:
            if isinstance(found, str):
                problems.append(found)
            else:
                pixels += torch.cat([found[:num_classes], found[IGNORE:]])
                occurs += found[:num_classes] > 0
    return Survey(problems, pixels, occurs, len(reader))


class _PixelCounts(Dataset):
    """For each sample its 256 pixel counts, or the sentence that says what is wrong with it."""

    def __init__(self, reader: Reader, images: bool) -> None:
        self.reader, self.images = reader, images

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            mask = self.reader.read(index)[1] if self.images else self.reader.read_mask(index)
        except SampleError as error:
            return str(error)
        return torch.bincount(mask.flatten(), minlength=256)
