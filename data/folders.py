"""Data sets in folders: finding the folder, its splits and its files."""

from collections.abc import Iterator
from pathlib import Path

from data.sources import SourceOptions
from errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

# The usual names of splits, in the order in which they are looked for.
TRAIN = ("train", "training")
TEST = ("test", "testing")
VAL = ("val", "validation", "valid", "validate", *TEST)


def data_root(options: SourceOptions, expected: str, *inner: str) -> Path:
    """The data set's folder: ``data_dir``, or a folder of a usual name inside it.

    Args:
        options: dataset and data_dir.
        expected: what the folder must hold, for the messages.
        inner: usual names of the data set's own folder, tried in order.

    Raises:
        UserError: no folder was given, it doesn't exist, or it is empty.
    """
    if options.data_dir is None:
        raise UserError(
            f"--dataset {options.dataset} needs --data_dir, the folder that holds {expected}."
        )
    root = Path(options.data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no data folder {root}: check --data_dir.")
    if not any(root.iterdir()):
        raise UserError(f"The data folder {root} is empty: put {expected} into it.")
    return next((root / name for name in inner if (root / name).is_dir()), root)


def require_folders(dataset: str, root: Path, expected: str, *names: str) -> list[Path]:
    """The folders of these names in ``root``.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if not (root / name).is_dir():
            raise UserError(
                f"{root} doesn't have the layout of {dataset}, because it has no {name}: it must "
                f"hold {expected}."
            )
    return [root / name for name in names]


def image_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every image file below a folder, sorted.

    Yields:
        (its path relative to the folder, without the suffix; the file).
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def read_text(file: Path) -> str:
    """The contents of a text file in UTF-8.

    Raises:
        UserError: it can't be read, or isn't UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(
            f"{file} can't be read ({problem}): restore it, or save it as text in UTF-8."
        ) from None


def stand_in_note(where: object, split: str) -> tuple[str, ...]:
    """A note for the user if a test split serves as the validation split; else no note."""
    if split not in TEST:
        return ()
    note = f"{where} has no split val: {split} is used to validate, and to choose the best weights."
    return (note,)
