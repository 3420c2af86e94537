"""Rows of labelled images: the schema that every source fills."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import datasets
import pyarrow as pa

IMAGE = datasets.Image(decode=False)
MOST_BYTES = 2**30  # of images in one Arrow array


class SourceOptions(Protocol):
    """The options that a source reads; ``ClassificationOptions`` has them."""

    dataset: str
    data_dir: str | None
    val_share: float | None
    fold: str | None
    val_group: str | None
    limit_train: int
    limit_val: int
    seed: int
    image_size: Sequence[int]
    image_column: str
    label_column: str
    skip_unlabelled: bool


@dataclass(frozen=True)
class ClassificationData:
    """A classification data set.

    Attributes:
        train: rows with the columns image (path or bytes) and label (ClassLabel).
        val: the same for evaluation.
        classes: names of the labels 0..n-1.
        notes: sentences about choices made here that a user should see.
    """

    train: datasets.Dataset
    val: datasets.Dataset
    classes: list[str]
    notes: tuple[str, ...] = ()


def rows(
    paths: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    files: Sequence[bytes] | None = None,
) -> datasets.Dataset:
    """Rows of the schema.

    Args:
        paths: the image files; with ``files``, only the names of the images.
        labels: of each image.
        classes: name of each label.
        files: the contents of the image files, where they are in memory.
    """
    label = datasets.ClassLabel(names=list(classes))
    files = files or [None] * len(paths)
    # Arrow arrays from the start, since a dictionary per row takes a minute for a million rows. In
    # pieces, since an array holds at most 2 GB.
    largest = max((len(file) for file in files if file is not None), default=0)
    size = max(1, MOST_BYTES // max(1, largest))
    pieces = [
        pa.StructArray.from_arrays(
            [
                pa.array(files[i : i + size], pa.binary()),
                pa.array(paths[i : i + size], pa.string()),
            ],
            names=["bytes", "path"],
        )
        for i in range(0, max(1, len(paths)), size)
    ]
    table = pa.table({"image": pa.chunked_array(pieces), "label": pa.array(labels, pa.int64())})
    info = datasets.DatasetInfo(features=datasets.Features({"image": IMAGE, "label": label}))
    # A fingerprint of its own, since computing one would read all the data.
    return datasets.Dataset(table, info=info, fingerprint=uuid.uuid4().hex)
