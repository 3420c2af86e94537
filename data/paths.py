"""Paths as users' files write them, perhaps on another machine, and as names of samples."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc


def resolve(name: str, bases: Sequence[Path]) -> Path | None:
    """The file or folder that a text names; None where there is none.

    Backslashes may stand for slashes, and leading folders, such as ``../`` or those above the data
    folder of another machine, may be missing here. A pipe or device is no file.

    Args:
        name: the path as written.
        bases: folders to which it may be relative, in the order in which they are tried.
    """
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        parts = Path(written).parts
        for first in range(max(1, len(parts))):
            inner = Path(*parts[first:]) if first else Path(os.path.expanduser(written))
            if first and inner.parts[0] == "..":
                continue
            found = next((base / inner for base in bases if _is_file_or_folder(base / inner)), None)
            if found:
                return found
    return None


def _is_file_or_folder(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # also of names that are too long, or hold a zero byte
        return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def relative(root: Path, path: str | Path) -> str:
    """A path below a folder, with slashes; the whole path elsewhere."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


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
