"""Validation samples held out of one folder, by the hash of their names.

Which samples are held out is a function of each name alone, the same on every machine, so that
adding files moves no other file to the other side. Only a class of which chance would hold out
nothing, or everything, is an exception: one original of it changes sides, and may change back when
files of the class are added. Names that show the same original, such as the frames of a video, are
always held out together: a network that has seen one of them knows the others.
"""

import hashlib
import re
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from data.folders import TEST
from errors import UserError

Sample = TypeVar("Sample")

DEFAULT_SHARE = 0.1

# What follows the name of the original: Roboflow's versions; the numbers of frames, where the
# folder may be the video; those of tiles or copies; the seconds of a part of a video.
PARTS = (
    re.compile(r"[._](jpe?g|png|bmp|webp|tiff?)\.rf\.\w+$", re.IGNORECASE),
    re.compile(r"(^|[-_./ ])(frame|frm)s?[-_. ]?\d+$", re.IGNORECASE),
    re.compile(
        r"[-_. ](tile|patch|crop|slice|view|aug|augmented|copy)[-_. ]?\d+([-_x. ]\d+)*$",
        re.IGNORECASE,
    ),
    re.compile(r"_\d{6}_\d{6}$"),
)


class HoldOutOptions(Protocol):
    """The options that say what is held out."""

    val_share: float | None
    fold: str | None
    val_group: str | None


def wants_holdout(options: HoldOutOptions, where: object, val: str | None) -> bool:
    """Whether the options ask for samples to be held out of the training split.

    Args:
        options: val_share and fold.
        where: the data set, for the message.
        val: name of the data set's own validation split, or of the test split in its place; None if
            it has none.

    Raises:
        UserError: they do, and the data set has its own validation split; or they only say what
            belongs together, where nothing is held out.
    """
    asked = bool(options.val_share or options.fold)
    if val is None or (asked and val.lower() in TEST):
        return asked
    if asked or options.val_group:
        option = "--fold" if options.fold else "--val_share" if asked else "--val_group"
        raise UserError(
            f"{where} has a split {val}, so nothing is to be held out: leave out {option}, or move "
            "the split away."
        )
    return False


def group_of(name: str, pattern: str | None = None) -> str:
    """The original that a sample is a part of; the name itself for most samples.

    Args:
        name: path of the sample below its data set, with or without suffix.
        pattern: a regular expression: the part of the name that it matches, or its first group, is
            the original; a name without a match is its own.
    """
    if pattern:
        found = re.search(pattern, name)
        return found[found.re.groups and 1] or name if found else name
    stem = re.sub(r"\.\w{1,5}$", "", name)
    for part in PARTS:
        shorter = part.sub("", stem)
        if shorter != stem:
            return shorter
    return name


def held_out(
    names: Sequence[str],
    options: HoldOutOptions,
    where: object,
    labels: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Which samples are for validation: bool (N,), neither all nor none.

    A tenth where the options name no share and no fold.

    Args:
        names: paths of the samples below the data set, with slashes.
        options: val_share, fold and val_group.
        where: the data set, for the message.
        labels: the class of each sample: unless a fold is asked for, one original at least of each
            class is for training, and of a class with two or more another is held out, unless
            a class needs that for training.

    Raises:
        UserError: all samples are of one original, or so few that none or all would be held out.
    """
    groups = [group_of(name, options.val_group) for name in names]
    hashes = np.array([_hash(group) for group in groups], np.uint64)
    if options.fold:
        number, count = map(int, options.fold.split("/"))
        out = hashes % np.uint64(count) == number - 1
    else:
        out = hashes < np.uint64(int((options.val_share or DEFAULT_SHARE) * 2**64))
        members: dict[Hashable, list[int]] = {}
        if labels is None or len(set(labels)) == len(labels):  # as many classes as samples are none
            labels = [None] * len(names)
        for sample, label in enumerate(labels):
            members.setdefault(label, []).append(sample)
        classes = members.values()
        # Whole originals change sides, also where they are of several classes.
        lowest = [hashes[own].min() for own in classes if not out[own].any()]
        out |= np.isin(hashes, lowest, kind="sort")  # numpy 2.0's table overflows
        highest = [hashes[own].max() for own in classes if out[own].all()]
        out &= ~np.isin(hashes, highest, kind="sort")
    if out.all() or not out.any():
        raise UserError(
            f"{where} has {len(names)} samples of {len(set(groups))} originals, of which "
            f"{'all' if len(names) and out.all() else 'none'} would be held out: add samples, ask "
            "for another share, or say with --val_group what belongs together."
        )
    return out


def hold_out(
    samples: Sequence[Sample],
    names: Sequence[str],
    options: HoldOutOptions,
    where: object,
    labels: Sequence[Hashable] | None = None,
) -> tuple[list[Sample], list[Sample], tuple[str, ...]]:
    """The samples for training and for validation, and a note for the user; see ``held_out``."""
    out = held_out(names, options, where, labels).tolist()
    train = [sample for sample, held in zip(samples, out, strict=True) if not held]
    val = [sample for sample, held in zip(samples, out, strict=True) if held]
    return train, val, holdout_note(options, where, len(val), len(samples))


def holdout_note(options: HoldOutOptions, where: object, count: int, total: int) -> tuple[str, ...]:
    """A note that says how many samples are held out, and by what."""
    how = f"fold {options.fold}" if options.fold else "the hash of their names"
    return (f"{where}: {count} of {total} samples are held out to validate, by {how}.",)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
