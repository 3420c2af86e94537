"""What the sources of every task share: finding folders, pictures, splits and hub data sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np

from errors import UserError

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

# The names by which splits go, in the order in which they are looked for.
TRAIN = ("train", "training")
TEST = ("test", "testing")
VAL = ("val", "validation", "valid", "validate", *TEST)


class SourceOptions(Protocol):
    """The options that say which data set is meant."""

    dataset: str
    data_dir: str | None


def source_called(dataset: str, sources: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The source that ``--dataset`` names; UserError if there is none."""
    kind, _, name = dataset.partition(":")
    if kind not in sources or (kind == "hub") != bool(name):
        known = ", ".join("hub:<id or path>" if name == "hub" else name for name in sources)
        raise UserError(f"There is no data set called {dataset}: --dataset takes {known}.")
    return sources[kind]


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers 0..count-1, evenly spaced; 0 for all of them."""
    kept = min(limit or count, count)
    return np.arange(kept) * count // max(kept, 1)


def spread(rows: datasets.Dataset, limit: int) -> datasets.Dataset:
    """At most ``limit`` rows, evenly spaced: files in order of recording stay representative."""
    kept = evenly_spaced(len(rows), limit)
    return rows if len(kept) == len(rows) else rows.select(kept)


def data_root(options: SourceOptions, expected: str, *inner: str) -> Path:
    """The data set's folder: ``data_dir``, or a folder of a usual name inside it.

    Args:
        options: dataset and data_dir.
        expected: what the folder should hold, for the messages.
        inner: usual names of the data set's own folder, tried in order.

    Raises:
        UserError: no folder was given, it isn't there, or it is empty.
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
    """The folders of these names in ``root``; UserError if one is missing."""
    for name in names:
        if not (root / name).is_dir():
            raise UserError(
                f"{root} is not in the layout of {dataset}, since it has no {name}: it must hold "
                f"{expected}."
            )
    return [root / name for name in names]


def picture_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every picture below a folder, sorted, with its relative path without the suffix."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def read_text(file: Path) -> str:
    """A text file in UTF-8.

    Raises:
        UserError: it can't be read as such.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"{file} can't be read ({problem}): restore it or save it anew.") from None


def require_classes(classes: Sequence[str], where: object) -> None:
    """Refuse data that leave nothing to tell apart."""
    if len(classes) < 2:
        raise UserError(
            f"{where} names {len(classes)} class{'es' if not classes else ''} for training, and "
            "classifying takes 2: add another class."
        )


def stand_in_note(where: object, split: str) -> tuple[str, ...]:
    """A note for the user where the split that validates is the test data."""
    if split not in TEST:
        return ()
    return (f"{where} has no split val: {split} is used to validate, and to choose best weights.",)


def open_hub(dataset: str) -> tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]:
    """The training and validation split of a Hugging Face data set, and notes for the user.

    Args:
        dataset: ``hub:`` and ``id`` or ``id:configuration`` on the hub, or a local path of what
            ``save_to_disk`` wrote or of anything that ``load_dataset`` reads.

    Raises:
        UserError: it can't be loaded, or has no split for training.
    """
    name = hub_name(dataset)
    splits = _load_hub(name)
    train_name = next((split for split in TRAIN if split in splits), None)
    val_name = next((split for split in VAL if split in splits), None)
    if train_name is None:
        raise UserError(
            f"{name} has no split train, only {', '.join(splits)}: give another data set."
        )
    train = splits[train_name]
    for split in (train_name, val_name):
        if split and not len(splits[split]):
            raise UserError(f"The split {split} of {name} is empty: give another data set.")
    if val_name:
        return train, splits[val_name], stand_in_note(name, val_name)
    if len(train) < 2:
        raise UserError(
            f"{name} has {len(train)} samples: it takes some to train, some to validate."
        )
    held_out = np.arange(0, len(train), 10)
    rest = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    note = f"{name} has no split for validation: every tenth training sample is held out."
    return rest, train.select(held_out), (note,)


def hub_name(dataset: str) -> str:
    """The id or path in ``hub:<id or path>``."""
    return dataset.partition(":")[2]


def _load_hub(name: str) -> dict[str, datasets.Dataset]:
    path = Path(name).expanduser()
    try:
        if path.exists():
            saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
            loaded = (datasets.load_from_disk if saved else datasets.load_dataset)(str(path))
        else:
            repository, _, configuration = name.partition(":")
            loaded = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # of any type: network, access rights, file formats, configurations
        reason = str(error).strip().partition("\n")[0].rstrip(".:")
        raise UserError(
            f"The data set {name} can't be loaded ({type(error).__name__}: {reason}): check the "
            "name or path, and that the hub can be reached."
        ) from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
