"""``--check_data``: reading a whole data set before training, whatever its task."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from data.decode import SampleError


class Survey(Protocol):
    """What reading every sample of a split has shown.

    Attributes:
        problems: a sentence per bad sample, naming the file.
        samples: number of samples read, the bad ones included.
    """

    problems: list[str]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """What the good samples consist of, in lines to print."""


def check_splits(
    readers: dict[str, Any],
    survey: Callable[[Any, int], Survey],
    classes: Sequence[str],
    num_workers: int,
) -> int:
    """Read every sample, and print what is bad and what the data consist of.

    Args:
        readers: a reader per split, by the split's name.
        survey: reads a split with a number of workers.
        classes: name of each class.
        num_workers: loader workers.

    Returns:
        The exit status: 1 if a sample is bad.
    """
    bad = 0
    for name, reader in readers.items():
        seen = survey(reader, num_workers)
        print(f"{name}: {seen.samples} samples, {len(seen.problems)} bad")
        print("\n".join([*seen.lines(classes), *seen.problems]))
        bad += len(seen.problems)
    return 1 if bad else 0


def read_all(
    read: Callable[[int], Any], count: int, num_workers: int
) -> Iterator[tuple[Any, str | None]]:
    """Read every sample in loader workers, and go on after a bad one.

    Args:
        read: reads the sample of an index and returns what is to be counted; small, because it
            travels from the worker to this process.
        count: number of samples.
        num_workers: loader workers.

    Yields:
        For each sample in order: what ``read`` returned, and None; or None, and the message of the
        SampleError that it raised.
    """
    samples = _Samples(read, count)
    for batch in DataLoader(samples, batch_size=4, num_workers=num_workers, collate_fn=list):
        yield from batch


class _Samples(Dataset):
    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self.read, self.count = read, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, str | None]:
        try:
            return self.read(index), None
        except SampleError as error:
            return None, str(error)
