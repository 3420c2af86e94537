"""What the samples of every task share: a reader of rows, and a data set over a reader."""

from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from data.decode import cell_name


def stored_paths(rows: datasets.Dataset, column: str) -> list[str | None] | None:
    """The path of each row's file, without reading the files that are stored as bytes.

    Args:
        rows: a split.
        column: of paths, or of cells ``{"path", "bytes"}``.

    Returns:
        None where the column holds no paths.
    """
    stored = rows.data.column(column)
    if pa.types.is_struct(stored.type) and stored.type.get_field_index("path") >= 0:
        stored = pc.struct_field(stored, "path")
    if not pa.types.is_string(stored.type):
        return None
    # The rows of the table that are in the data set; None for all.
    indices = rows._indices
    return (stored if indices is None else stored.take(indices.column(0))).to_pylist()


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
