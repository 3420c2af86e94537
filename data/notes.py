"""What a user should see of a data set at the start, whatever its task and source."""

import os
from collections.abc import Sequence

import datasets
import numpy as np

from data.paths import stored_paths

EXAMPLES = 3  # files or classes that a note names
MEDIA = ("image", "video")  # a task's rows have one of these columns


def some_of(names: Sequence[str]) -> str:
    """The first names, as a sentence lists them."""
    return ", ".join(names[:EXAMPLES]) + (" and others" if len(names) > EXAMPLES else "")


def label_counts(rows: datasets.Dataset, classes: Sequence[str]) -> np.ndarray:
    """The number of rows of each label, int64 (K,)."""
    labels = rows.select_columns("label").with_format("arrow")[:].column(0)
    return np.bincount(labels.to_numpy(), minlength=len(classes))


def class_notes(
    classes: Sequence[str], train: Sequence[int], val: Sequence[int], what: str
) -> tuple[str, ...]:
    """Sentences on classes that can't be scored, or can't be learned.

    Args:
        classes: the names.
        train: how many of each there are to learn.
        val: the same for evaluation.
        what: is counted, such as "object".
    """
    counts = list(zip(classes, train, val, strict=True))
    absent = [name for name, _, scored in counts if not scored]
    unknown = [name for name, learned, scored in counts if scored and not learned]
    notes: tuple[str, ...] = ()
    if absent:
        notes += (
            f"val: {len(absent)} of {len(classes)} classes have no {what}, and count in no mean: "
            f"{some_of(absent)}.",
        )
    if unknown:
        notes += (
            f"val: {len(unknown)} of {len(classes)} classes occur in validation alone, and can't "
            f"be learned: {some_of(unknown)}.",
        )
    return notes


def shared_note(train: datasets.Dataset, val: datasets.Dataset) -> tuple[str, ...]:
    """A sentence where validation reads files that training reads too.

    Links to folders are followed; links to files are not, since that would take a look at each.
    """
    paths = _paths(val)
    if not paths:
        return ()
    real: dict[str, str] = {}

    def located(path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition(os.sep)  # faster than os.path.split
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        return real[folder], name

    scored = {located(path): path for path in paths}
    shared = scored.keys() & map(located, _paths(train))
    if not shared:
        return ()
    first = next(path for place, path in scored.items() if place in shared)
    return (
        f"{len(shared)} of {len(scored)} validation files are training files too, so that the "
        f"metrics say little about new ones (first: {first}).",
    )


def _paths(rows: datasets.Dataset) -> list[str]:
    """The files of the rows; none where the rows hold their contents."""
    column = next(name for name in MEDIA if name in rows.column_names)
    if not len(rows) or (rows[0][column] or {}).get("bytes") is not None:
        return []
    return [path for path in stored_paths(rows, column) or () if path]
