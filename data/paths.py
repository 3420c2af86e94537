"""Paths as users' files write them, perhaps on another machine, and as names of samples."""

from collections.abc import Sequence
from pathlib import Path


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
        for first in range(len(parts)):
            inner = Path(*parts[first:]) if first else Path(written).expanduser()
            if first and inner.parts[0] == "..":
                continue
            for base in bases:
                path = base / inner
                if path.is_file() or path.is_dir():
                    return path
    return None


def relative(root: Path, path: str | Path) -> str:
    """A path below a folder, with slashes; the whole path elsewhere."""
    path = Path(path)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
