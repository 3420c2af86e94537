"""Which data set ``--dataset`` names, and how many of its samples are used."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import datasets
import numpy as np

from data.faults import Faults
from data.notes import shared_note
from errors import UserError


class SourceOptions(Protocol):
    """The options that every source reads."""

    dataset: str
    data_dir: str | None
    val_share: float | None
    fold: str | None
    val_group: str | None


def load_from(
    sources: Mapping[str, Callable[[Any, Faults], Any]], options: Any, faults: Faults | None
) -> Any:
    """The data set that the options name, with as many samples of each split as they ask for.

    Args:
        sources: a task's table of sources; "hub" stands for every data set of the hub.
        options: dataset, limit_train and limit_val, and what the source reads.
        faults: gets the faults of single files and records; with None any fault is refused.

    Returns:
        What the source returns, a dataclass with the rows ``train`` and ``val``, and ``notes``.

    Raises:
        UserError: there is no such data set, it isn't in the layout expected, or it has a fault
            that ``faults`` doesn't take.
    """
    kind, _, name = options.dataset.partition(":")
    if kind not in sources or (kind == "hub") != bool(name):
        known = ", ".join("hub:<id or path>" if name == "hub" else name for name in sources)
        raise UserError(f"There is no data set called {options.dataset}: --dataset takes {known}.")
    collected = Faults() if faults is None else faults
    try:
        data = sources[kind](options, collected)
    except UserError as error:
        if faults is not None:
            raise
        collected.add(options.data_dir or options.dataset, str(error))  # after what led to it
    if faults is None:
        collected.stop_if_any()
    train, val = spread(data.train, options.limit_train), spread(data.val, options.limit_val)
    notes = (*data.notes, *shared_note(train, val))
    return replace(data, train=train, val=val, notes=notes)


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers 0..count-1, evenly spaced; all of them if ``limit`` is 0."""
    kept = min(limit or count, count)
    return np.arange(kept) * count // max(kept, 1)


def spread(rows: datasets.Dataset, limit: int) -> datasets.Dataset:
    """At most ``limit`` rows, evenly spaced, so that they represent files in order of recording."""
    kept = evenly_spaced(len(rows), limit)
    return rows if len(kept) == len(rows) else rows.select(kept)
