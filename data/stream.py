"""The stream of samples: which sample comes when, and with which random state.

Training consumes an endless stream of dataset indices. Epoch e's part of the stream is a
permutation drawn from (seed, e), batches run across epoch borders, and every optimizer step takes
the next ``global_batch_size`` entries. The only state is the number of samples consumed, so a run
resumes by arithmetic, on any number of processes and workers. With weights an epoch is as long, and
shows a sample as often as its weight says, which is also a function of (seed, e) alone.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """One entry of the stream.

    Attributes:
        epoch: the pass over the data that it belongs to, from 0.
        index: of the sample in the data set.
        position: of the entry in the stream, from 0.
        repeat: how often the epoch has shown the sample before.
    """

    epoch: int
    index: int
    position: int
    repeat: int = 0


def sample_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """Seed of one sample's random state: a function of these four and nothing else.

    Returns:
        A 63-bit integer, well mixed (numpy's SeedSequence), for ``torch.manual_seed``.
    """
    entropy = [seed, epoch, index, repeat] if repeat else [seed, epoch, index]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def sample_randomness(seed: int, key: SampleKey) -> Iterator[None]:
    """A context in which torch's default generator is in the sample's own random state.

    Afterwards the generator is as before: without workers, samples are made in the process that
    trains.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed all accelerators, which takes a millisecond.
        torch.default_generator.manual_seed(sample_seed(seed, key.epoch, key.index, key.repeat))
        yield


def epoch_order(
    num_samples: int, seed: int, epoch: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """The samples in the order in which an epoch visits them: int64 (num_samples,).

    Without weights it is a permutation. With weights a sample is expected ``num_samples * weight /
    sum of weights`` times, and comes that often, rounded down or up at random.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(num_samples)
    if weights is None:
        return order
    # Marks at equal distances on a line on which the samples, in random order, lie end to end.
    ends = np.cumsum(weights[order] * (num_samples / weights.sum()))
    marks = np.arange(num_samples) + rng.uniform()
    places = np.minimum(np.searchsorted(ends, marks, side="right"), num_samples - 1)
    return rng.permutation(order[places])


def repeats_of(order: np.ndarray) -> np.ndarray:
    """How often each entry has come before in the order: int64, the same length."""
    by_sample = np.argsort(order, kind="stable")
    _, first, counts = np.unique(order[by_sample], return_index=True, return_counts=True)
    repeats = np.empty_like(order)
    repeats[by_sample] = np.arange(len(order)) - np.repeat(first, counts)
    return repeats


class SampleStream:
    """Random access to the endless stream of samples.

    Args:
        num_samples: size of the data set.
        seed: the run's seed.
        weights: how often each sample is seen in proportion to others: float64 (num_samples,),
            above 0; None for once in each epoch.
    """

    def __init__(self, num_samples: int, seed: int, weights: np.ndarray | None = None) -> None:
        self.num_samples, self.seed, self.weights = num_samples, seed, weights
        self._epoch = -1
        self._order = self._repeats = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> SampleKey:
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = epoch_order(self.num_samples, self.seed, epoch, self.weights)
            once = self.weights is None
            self._repeats = np.zeros_like(self._order) if once else repeats_of(self._order)
        return SampleKey(epoch, int(self._order[offset]), position, int(self._repeats[offset]))

    def step_indices(self, step: int, global_batch_size: int) -> list[int]:
        """Indices of the samples that all processes consume in a step (from 0)."""
        first = step * global_batch_size
        return [self[p].index for p in range(first, first + global_batch_size)]


class RankBatches(Sampler[list[SampleKey]]):
    """One rank's micro-batches of the stream, for ``DataLoader(batch_sampler=...)``.

    A micro-batch of all ranks is ``num_processes * batch_size`` consecutive entries, of which rank
    r takes the r-th slice: k processes with batch b normalise over and learn from the same samples
    as one process with batch k*b.

    Args:
        stream: the stream of samples.
        batch_size: samples per process and micro-batch.
        rank: the process's number.
        num_processes: number of processes.
        start: position in the stream at which to start: the samples that all processes together
            have consumed.
        stop: position in the stream at which to stop.
    """

    def __init__(
        self,
        stream: SampleStream,
        batch_size: int,
        rank: int,
        num_processes: int,
        start: int,
        stop: int,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[list[SampleKey]]:
        micro_batch = self.num_processes * self.batch_size
        for first in range(self.start, self.stop - micro_batch + 1, micro_batch):
            mine = first + self.rank * self.batch_size
            yield [self.stream[p] for p in range(mine, mine + self.batch_size)]

    def __len__(self) -> int:
        return (self.stop - self.start) // (self.num_processes * self.batch_size)


class RankShard(Sampler[int]):
    """One rank's share of an evaluation: over all ranks every index exactly once, unpadded.

    Shares may differ by one sample, so an evaluation must not use a collective per batch.

    Args:
        num_samples: size of the data set.
        rank: the process's number.
        num_processes: number of processes.
    """

    def __init__(self, num_samples: int, rank: int, num_processes: int) -> None:
        self.indices = range(rank, num_samples, num_processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
