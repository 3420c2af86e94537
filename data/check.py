"""``--check_data``: reading a whole data set before training, whatever its task."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Survey(Protocol):
    """What reading every sample of a split has shown.

    Attributes:
        problems: a sentence per bad sample, naming the file.
        samples: all samples read.
    """

    problems: list[str]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """What the split consists of."""


def check_splits(
    readers: dict[str, Any],
    survey: Callable[[Any, int], Survey],
    classes: Sequence[str],
    num_workers: int,
) -> int:
    """Read every sample, and print what is bad and what the data consist of.

    Args:
        readers: of each split, by its name.
        survey: reads a split with a number of workers.
        classes: name of each class.
        num_workers: loader workers.

    Returns:
        The exit status: 1 if anything is bad.
    """
    bad = 0
    for name, reader in readers.items():
        seen = survey(reader, num_workers)
        print(f"{name}: {seen.samples} samples, {len(seen.problems)} bad")
        print("\n".join([*seen.lines(classes), *seen.problems]))
        bad += len(seen.problems)
    return 1 if bad else 0
