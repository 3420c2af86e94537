"""``--check_data`` for segmentation: bad samples, and how common each class is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data.check import Look, Suspicion, read_all, run_check
from data.faults import Fault
from data.masks import IGNORE
from engine.loaders import count_workers
from tasks.segmentation.dataset import Reader
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import load_data


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a split has shown.

    Attributes:
        faults: of the samples that can't be used.
        looks: what each image shows, None for one that can't be used or wasn't decoded.
        pixels: int64 (num_classes + 1,): pixels of each class in the good samples, ignored last.
        images: int64 (num_classes,): good samples in which each class occurs.
        plain: numbers of the good samples whose masks hold one class alone, or none.
        samples: number of samples read, the bad ones included.
    """

    faults: list[Fault]
    looks: list[Look | None]
    pixels: torch.Tensor
    images: torch.Tensor
    plain: list[int]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """A table: share of the pixels and number of images of each class."""
        shares = (100 * self.pixels / self.pixels.sum().clamp(min=1)).tolist()
        width = max(map(len, [*classes, "ignored"]))
        rows = [
            f"{name:<{width}}  {share:5.1f} % of pixels, in {count} images"
            for name, share, count in zip(classes, shares, self.images.tolist(), strict=False)
        ]
        return [*rows, f"{'ignored':<{width}}  {shares[-1]:5.1f} %"]

    def suspicions(self, classes: Sequence[str], reader: Reader) -> list[Suspicion]:
        """Classes that no mask holds, and masks of one class."""
        absent = [name for name, count in zip(classes, self.images, strict=True) if not count]
        plain = [reader.name(number) for number in self.plain]
        hint = "can't be learnt or scored"
        found = [
            Suspicion("classes without pixels", hint, absent),
            Suspicion("masks of one class", "or with ignored pixels only", plain),
        ]
        return [suspicion for suspicion in found if suspicion.seen]


def check_data(options: SegmentationOptions) -> int:
    """Read every sample of both splits, print the findings and return the exit status."""
    return run_check(
        options,
        load_data,
        lambda data: {
            "train": Reader(data.train, data.rule, options.resize_masks),
            "val": Reader(data.val, data.rule, options.resize_masks),
        },
        lambda data, reader, workers: survey(reader, workers),
        partial(count_workers, options.num_workers),
    )


def survey(reader: Reader, num_workers: int = 0, *, images: bool = True) -> Survey:
    """Decode every sample completely, as it is stored, and count the pixels of each class.

    Args:
        reader: of a split.
        num_workers: loader workers.
        images: whether to decode the images too, or the masks alone.
    """
    num_classes = reader.rule.num_classes
    faults: list[Fault] = []
    looks: list[Look | None] = []
    plain: list[int] = []
    pixels = torch.zeros(num_classes + 1, dtype=torch.int64)
    occurs = torch.zeros(num_classes, dtype=torch.int64)
    found = read_all(partial(_count, reader, images), reader, num_workers)
    for number, (measured, fault) in enumerate(found):
        counts, look = measured or (None, None)
        looks.append(look)
        if fault:
            faults.append(fault)
            continue
        pixels += torch.cat([counts[:num_classes], counts[IGNORE:]])
        occurs += counts[:num_classes] > 0
        if (counts[:num_classes] > 0).sum() < 2:
            plain.append(number)
    return Survey(faults, looks, pixels, occurs, plain, len(reader))


def _count(reader: Reader, images: bool, index: int) -> tuple[torch.Tensor, Look | None]:
    """How often a sample's mask holds each value, int64 (256,), and what its image shows."""
    look = None
    if images:
        image, mask = reader.read(index)
        look = Look.of([image])
    else:
        mask = reader.read_mask(index)
    return torch.bincount(mask.flatten(), minlength=256), look
