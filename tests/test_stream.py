"""The stream of samples: same samples for any number of processes, from any starting point."""

from collections import Counter
from itertools import chain

import pytest

from data.stream import RankBatches, RankShard, SampleStream, sample_seed


def consumed(processes: int, batch: int, start: int = 0, stop: int = 48) -> list[list]:
    """The samples of every micro-batch of all processes together."""
    ranks = [
        list(RankBatches(SampleStream(10, 3), batch, rank, processes, start, stop))
        for rank in range(processes)
    ]
    return [[*chain(*parts)] for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("processes, batch", [(2, 4), (4, 2), (8, 1)])
def test_processes_share_the_batches_of_one(processes: int, batch: int) -> None:
    assert consumed(processes, batch) == consumed(1, 8)


def test_an_epoch_holds_every_sample_once() -> None:
    samples = [*chain(*consumed(2, 4))]
    for epoch in range(4):
        assert sorted(key.index for key in samples if key.epoch == epoch) == list(range(10))
    first, second = ([key.index for key in samples if key.epoch == epoch] for epoch in (0, 1))
    assert first != second
    assert [key.position for key in samples] == list(range(48))


def test_starting_later_continues_the_stream() -> None:
    assert consumed(2, 4, start=24) == consumed(2, 4)[3:]
    assert consumed(4, 1, start=24) == consumed(1, 4, start=24)


def test_all_batches_are_full() -> None:
    batches = RankBatches(SampleStream(10, 0), 4, 0, 2, 0, 50)
    assert [len(batch) for batch in batches] == [4] * 6
    assert len(batches) == 6


def test_step_indices_are_what_the_processes_read() -> None:
    for step in range(3):
        read = [key.index for key in chain(*consumed(2, 2)[2 * step : 2 * step + 2])]
        assert SampleStream(10, 3).step_indices(step, 8) == read


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shards_hold_every_sample_once_unpadded(processes: int) -> None:
    shards = [list(RankShard(5, rank, processes)) for rank in range(processes)]
    assert Counter(chain(*shards)) == Counter(range(5))
    assert [len(RankShard(5, rank, processes)) for rank in range(processes)] == [*map(len, shards)]


def test_seeds_depend_on_each_of_their_parts() -> None:
    seeds = {sample_seed(s, e, i) for s in range(4) for e in range(4) for i in range(4)}
    assert len(seeds) == 64
    assert sample_seed(1, 2, 3) == sample_seed(1, 2, 3)
