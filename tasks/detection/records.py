"""What an evaluation keeps of its images: few arrays, which are quickly sent between processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

# The columns of objects that are numbers; objects with masks have run lengths as well.
TRUTH = ("image", "boxes", "labels", "iscrowd", "area")
FOUND = ("image", "boxes", "labels", "scores")


@dataclass(frozen=True)
class Records:
    """What is in some images and what was found in them, in the images' own pixels.

    Attributes:
        images: int64 (I,), numbers of the images in the data set; every image occurs once.
        sizes: int64 (I, 2), height and width.
        truth: the objects of all images: "image" (N,), the number of each one's image, "boxes"
            (N, 4) as x, y, width, height, "labels" (N,), "iscrowd" (N,), "area" (N,), and with
            masks "rles": a list of N compressed run lengths.
        found: the detections: "image", "boxes", "labels", "scores" (M,), and with masks "rles".
    """

    images: np.ndarray
    sizes: np.ndarray
    truth: dict[str, Any]
    found: dict[str, Any]

    @classmethod
    def of_image(
        cls, index: int, size: tuple[int, int], truth: dict[str, Any], found: dict[str, Any]
    ) -> "Records":
        """The record of one image.

        Args:
            index: number of the image in the data set.
            size: (height, width).
            truth: its objects: arrays or tensors as above, without "image".
            found: its detections.
        """
        return cls(
            np.array([index]),
            np.array([size]),
            _columns(truth, TRUTH, index),
            _columns(found, FOUND, index),
        )

    @classmethod
    def joined(cls, records: Sequence["Records"]) -> "Records":
        """One or more records as one, in their order."""
        return cls(
            np.concatenate([record.images for record in records]),
            np.concatenate([record.sizes for record in records]),
            _joined([record.truth for record in records]),
            _joined([record.found for record in records]),
        )


def _columns(objects: dict[str, Any], names: Sequence[str], index: int) -> dict[str, Any]:
    columns = {name: np.asarray(objects[name]) for name in names[1:]}
    columns["image"] = np.full(len(columns["labels"]), index)
    return columns | {name: objects[name] for name in ("rles",) if name in objects}


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: list(chain(*values)) if name == "rles" else np.concatenate(values)
        for name, values in columns.items()
    }
