"""Which part of a data set trains and which one validates, for every layout of files."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.faults import Faults
from data.folders import TRAIN, VAL, left_out_note, stand_in_note
from data.holdout import hold_out, wants_holdout
from data.notes import some_of
from data.paths import relative
from errors import UserError
from tasks.detection.options import DetectionOptions


class Place(NamedTuple):
    """Where a split was found.

    Attributes:
        name: of the split, one of TRAIN or VAL; empty for the whole data set.
        found: what a format needs to read it.
        left_out: files that are not of the format.
    """

    name: str
    found: Any
    left_out: Sequence[Path] = ()


class Splits(NamedTuple):
    """Where both splits are.

    Attributes:
        train: the place of the training split.
        val: that of the validation split; None where it is held out of the training split.
        notes: sentences for the user.
    """

    train: Place
    val: Place | None
    notes: tuple[str, ...]


def find_splits(
    options: DetectionOptions,
    root: Path,
    find: Callable[[Sequence[str]], Place | None],
    whole: Callable[[], Place | None],
    expected: str,
) -> Splits:
    """The places of the splits, or of all data where the options hold samples out of one folder.

    Args:
        options: val_share and fold.
        root: the data folder.
        find: finds a split by its names.
        whole: finds data that no split is named for.
        expected: what the data folder must hold, for the messages.

    Raises:
        UserError: a split is missing.
    """
    train, val = find(TRAIN), find(VAL)
    if wants_holdout(options, root, val and val.name):
        train, val = train or whole(), None
        if train is None:
            raise UserError(f"{root} has no training data: it must hold {expected}.")
    elif train is None or val is None:
        missing = TRAIN[0] if train is None else VAL[0]
        one = "" if train is None and not whole() else ", or give --val_share 0.1"
        raise UserError(f"{root} has no split {missing}: it must hold {expected}{one}.")
    return Splits(train, val, stand_in_note(root, val.name) if val else ())


def divide(
    options: DetectionOptions, root: Path, splits: Splits, read: Callable[[Place], list], name: Any
) -> tuple[list[list], tuple[str, ...]]:
    """What is read of both splits, or of one with the validation samples held out, and notes.

    Args:
        options: val_share, fold and val_group.
        root: the data folder.
        splits: see ``find_splits``.
        read: the samples of a place.
        name: the path of a sample's image, by which samples are held out.
    """
    if splits.val:
        return [read(splits.train), read(splits.val)], splits.notes
    samples = read(splits.train)
    names = [relative(root, name(sample)) for sample in samples]
    train, val, notes = hold_out(samples, names, options, root)
    return [train, val], splits.notes + notes


def left_out_notes(root: Path, splits: Splits) -> tuple[str, ...]:
    """A note on the files beside the images that are not of the format, if there are any."""
    places = [place for place in (splits.train, splits.val) if place]
    left_out = dict.fromkeys(path for place in places for path in place.left_out)
    return left_out_note(root, list(left_out), "images")


def refuse_shared(pairs: Iterable[tuple[Path, Path]], faults: Faults) -> None:
    """Images of one name, such as x.jpg and x.png, that share a file of annotations.

    Args:
        pairs: each image with its file.
        faults: gets them.
    """
    first: dict[Path, Path] = {}
    for image, file in pairs:
        other = first.setdefault(file, image)
        if other != image and file.is_file():
            faults.add(
                image, f"{other} and {image} have the same file {file}: remove one of the images."
            )


def unused_note(unused: Sequence[Path], what: str) -> tuple[str, ...]:
    """A note that counts and names files of annotations that belong to no image, if there are any.

    Args:
        unused: the files.
        what: one of them is.
    """
    if not unused:
        return ()
    have = f"1 {what} has" if len(unused) == 1 else f"{len(unused)} {what}s have"
    return (f"{have} no image and count for nothing: {some_of([*map(str, unused)])}.",)
