"""What the samples of every task share: a reader of rows, and a data set over a reader."""

from typing import Any, ClassVar

import datasets
from torch.utils.data import Dataset

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
    """

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """The sample's file, or its number where there is no file."""
        return self.reader.name(index)
