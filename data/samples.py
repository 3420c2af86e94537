"""What the samples of every task share: a reader of rows, a data set over it, and batching."""

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from data.decode import cell_name


class RowReader:
    """Reads the samples of a split as they are stored; a subclass says how.

    Args:
        rows: of the split.

    Attributes:
        media: the column of the files that give samples their names.
    """

    media: ClassVar[str] = "image"

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The sample's file, or its number where there is no file."""
        return self.name_of(self.rows[index], index)

    def name_of(self, row: dict[str, Any], index: int) -> str:
        """The same, for a row that has been read."""
        return cell_name(row[self.media], f"{self.media.capitalize()} of sample {index}")


class ReaderDataset(Dataset):
    """Samples made from what a reader reads; a subclass says how.

    Args:
        reader: of the split.

    Attributes:
        weights: how often each sample is seen in training (data/balance.py); None for once in each
            epoch.
    """

    weights: np.ndarray | None = None

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """The sample's file, or its number where there is no file."""
        return self.reader.name(index)


def collate(samples: Sequence[dict[str, Any]], media: str) -> dict[str, Tensor]:
    """Stack samples whose entries have one size each.

    Args:
        samples: dictionaries of tensors and numbers.
        media: the entry of the images or clips, see ``stack_images``.
    """
    others = [{name: s[name] for name in s if name != media} for s in samples]
    return {media: stack_images([s[media] for s in samples]), **default_collate(others)}


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Stack images, or clips, (..., 3, H, W), with the colours of a pixel side by side in memory.

    Decoders store them so, and so the convolutions of a network in channels-last format take them:
    copying is quick, and nothing has to be rearranged later.
    """
    # In a worker, default_collate stacks right into shared memory.
    return default_collate([image.movedim(-3, -1) for image in images]).movedim(-1, -3)
