"""Which data set ``--dataset`` names, and how many of its samples are used."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import datasets
import numpy as np

from errors import UserError


class SourceOptions(Protocol):
    """The options that every source reads."""

    dataset: str
    data_dir: str | None


def source_called(dataset: str, sources: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The entry of a task's table of sources that ``--dataset`` names.

    Raises:
        UserError: the table has no such entry.
    """
    kind, _, name = dataset.partition(":")
    if kind not in sources or (kind == "hub") != bool(name):
        known = ", ".join("hub:<id or path>" if name == "hub" else name for name in sources)
        raise UserError(f"There is no data set called {dataset}: --dataset takes {known}.")
    return sources[kind]


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers 0..count-1, evenly spaced; all of them if ``limit`` is 0."""
    kept = min(limit or count, count)
    return np.arange(kept) * count // max(kept, 1)


def spread(rows: datasets.Dataset, limit: int) -> datasets.Dataset:
    """At most ``limit`` rows, evenly spaced, so that they represent files in order of recording."""
    kept = evenly_spaced(len(rows), limit)
    return rows if len(kept) == len(rows) else rows.select(kept)
