"""Reading a whole data set before training: what is bad in it, and what it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from data.decode import SampleError
from data.masks import IGNORE
from data.segmentation.dataset import SegmentationDataset


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


def survey(dataset: SegmentationDataset, num_workers: int = 0, *, images: bool = True) -> Survey:
    """Decode every sample to the last pixel, as it is stored, and count the classes' pixels.

    Args:
        dataset: the samples.
        num_workers: loader workers.
        images: whether to decode the images too, or the masks alone.
    """
    reader = _Reader(dataset, images)
    loader = DataLoader(reader, batch_size=16, num_workers=num_workers, collate_fn=list)
    num_classes = len(dataset.data.classes)
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
    return Survey(problems, pixels, occurs, len(dataset))


class _Reader(Dataset):
    """For each sample its 256 pixel counts, or the sentence that says what is wrong with it."""

    def __init__(self, dataset: SegmentationDataset, images: bool) -> None:
        self.dataset, self.images = dataset, images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            mask = self.dataset.read(index)[1] if self.images else self.dataset.read_mask(index)
        except SampleError as error:
            return str(error)
        return torch.bincount(mask.flatten(), minlength=256)
