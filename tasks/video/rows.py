"""Rows of video data: the schema that every source fills."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data.class_lists import require_classes
from data.holdout import hold_out
from data.paths import relative
from errors import UserError
from tasks.video.decoding.open import OpenVideo, open_video
from tasks.video.options import VideoOptions

COLUMN = datasets.Video(decode=False)
SECONDS = datasets.Value("float64")


@dataclass(frozen=True)
class VideoData:
    """A video data set.

    Attributes:
        train: rows with the columns video (path or bytes), label, start and end (seconds or None).
        val: the same for evaluation.
        classes: names of the labels 0..n-1.
        notes: sentences about choices made here that a user should see.
        open: opens a cell of the column video.
    """

    train: datasets.Dataset
    val: datasets.Dataset
    classes: list[str]
    notes: tuple[str, ...] = ()
    open: OpenVideo = open_video


@dataclass(frozen=True)
class Clip:
    """A labelled video, or a part of one: ``start`` to ``end`` in seconds."""

    path: str | None
    label: str
    start: float | None = None
    end: float | None = None


def make_data(
    options: VideoOptions,
    train: Sequence[Clip],
    val: Sequence[Clip] | None,
    root: Path,
    classes: list[str] | None = None,
    notes: tuple[str, ...] = (),
) -> VideoData:
    """Rows of the clips; the classes, unless given, are those of the training clips, sorted.

    Args:
        options: val_share, fold and val_group.
        train: clips to learn.
        val: clips to score; None to hold some of ``train`` out.
        root: the data folder.
        classes: their names, in the order of the labels.
        notes: sentences for the user.

    Raises:
        UserError: there are fewer than two classes, or a clip is of none of them, or a clip to
            score is of a class that none is to learn.
    """
    mend = "correct its class"
    if val is None:
        mend = "hold out other videos (--val_share, --fold)"
        # Parts of one video are held out together.
        names = [relative(root, clip.path or "") for clip in train]
        train, val, more = hold_out(train, names, options, root, [clip.label for clip in train])
        notes += more
    if classes is None:
        classes = sorted({clip.label for clip in train})
    require_classes(classes, root)
    known, learned = set(classes), {clip.label for clip in train}  # a file may name more classes
    parts = ((train, known), (val, known & learned))
    unknown = next(
        (clip for clips, names in parts for clip in clips if clip.label not in names), None
    )
    if unknown:
        raise UserError(
            f"{unknown.path} is of the class {unknown.label}, but no training video in {root} is: "
            f"{mend}, or remove it."
        )
    return VideoData(to_rows(train, classes), to_rows(val, classes), classes, notes)


def to_rows(clips: Sequence[Clip], classes: list[str]) -> datasets.Dataset:
    """Rows of labelled clips."""
    columns = {
        "video": [clip.path for clip in clips],
        "label": [clip.label for clip in clips],  # encoded by the schema
        "start": [clip.start for clip in clips],
        "end": [clip.end for clip in clips],
    }
    label = datasets.ClassLabel(names=classes)
    schema = {"video": COLUMN, "label": label, "start": SECONDS, "end": SECONDS}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(schema))
