"""Which data set ``--dataset`` names, and how many of its samples are used."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import datasets
import numpy as np

from errors import UserError


class SourceOptions(Protocol):
    """The options that every source reads."""

    dataset: str
    data_dir: str | None


def load_from(sources: Mapping[str, Callable[[Any], Any]], options: Any) -> Any:
    """The data set that the options name, with as many samples of each split as they ask for.

    Args:
        sources: a task's table of sources; "hub" stands for every data set of the hub.
        options: dataset, limit_train and limit_val, and what the source reads.

    Returns:
        What the source returns, a dataclass with the rows ``train`` and ``val``.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    kind, _, name = options.dataset.partition(":")
    if kind not in sources or (kind == "hub") != bool(name):
        known = ", ".join("hub:<id or path>" if name == "hub" else name for name in sources)
        raise UserError(f"There is no data set called {options.dataset}: --dataset takes {known}.")
    data = sources[kind](options)
    train, val = spread(data.train, options.limit_train), spread(data.val, options.limit_val)
    return replace(data, train=train, val=val)


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers 0..count-1, evenly spaced; all of them if ``limit`` is 0."""
    kept = min(limit or count, count)
    return np.arange(kept) * count // max(kept, 1)


def spread(rows: datasets.Dataset, limit: int) -> datasets.Dataset:
    """At most ``limit`` rows, evenly spaced, so that they represent files in order of recording."""
    kept = evenly_spaced(len(rows), limit)
    return rows if len(kept) == len(rows) else rows.select(kept)
