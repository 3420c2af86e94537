"""The stream of samples: same samples for any number of processes, from any starting point."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from data.balance import repeat_factors, square_root_weights
from data.stream import RankBatches, RankShard, SampleStream, epoch_order, sample_seed

WEIGHTS = np.array([1.0] * 9 + [5.5])


def consumed(
    processes: int, batch: int, start: int = 0, stop: int = 48, weights=None
) -> list[list]:
    """The samples of every micro-batch of all processes together."""
    ranks = [
        list(RankBatches(SampleStream(10, 3, weights), batch, rank, processes, start, stop))
        for rank in range(processes)
    ]
    return [[*chain(*parts)] for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("processes, batch", [(2, 4), (4, 2), (8, 1)])
def test_processes_share_the_batches_of_one(processes: int, batch: int, weights) -> None:
    assert consumed(processes, batch, weights=weights) == consumed(1, 8, weights=weights)


def test_an_epoch_holds_every_sample_once() -> None:
    samples = [*chain(*consumed(2, 4))]
    for epoch in range(4):
        assert sorted(key.index for key in samples if key.epoch == epoch) == list(range(10))
    first, second = ([key.index for key in samples if key.epoch == epoch] for epoch in (0, 1))
    assert first != second
    assert [key.position for key in samples] == list(range(48))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_starting_later_continues_the_stream(weights) -> None:
    weighted = {"weights": weights}
    assert consumed(2, 4, start=24, **weighted) == consumed(2, 4, **weighted)[3:]
    assert consumed(4, 1, start=24, **weighted) == consumed(1, 4, start=24, **weighted)


def test_weights_say_how_often_a_sample_is_seen() -> None:
    weights = np.random.default_rng(0).uniform(0.2, 4, 50)
    expected, total = 50 * weights / weights.sum(), np.zeros(50)
    for epoch in range(400):
        counts = np.bincount(epoch_order(50, 7, epoch, weights), minlength=50)
        assert counts.sum() == 50
        assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
        total += counts
    assert abs(total / 400 - expected).max() < 0.1
    assert (epoch_order(50, 7, 3, weights) != epoch_order(50, 7, 4, weights)).any()


def test_repeated_samples_have_random_states_of_their_own() -> None:
    keys = [key for batch in consumed(2, 4, weights=WEIGHTS) for key in batch if key.epoch < 4]
    distinct = {(key.epoch, key.index, key.repeat) for key in keys}
    assert len(distinct) == len(keys) and max(key.repeat for key in keys) >= 2
    assert len({sample_seed(3, *part) for part in distinct}) == len(keys)
    assert sample_seed(1, 2, 3, 0) == sample_seed(1, 2, 3)


def test_square_root_weights() -> None:
    weights = square_root_weights([0] * 16 + [2] * 4 + [5])
    seen = [weights[:16].sum(), weights[16:20].sum(), weights[20]]
    assert np.allclose(np.array(seen) / seen[2], [4, 2, 1])


def test_repeat_factors() -> None:
    # Of 16 images, class 0 is in 16, class 1 in 4, class 2 in 1: the median class is in 4.
    images = [[0, 0]] * 11 + [[0, 1], [1, 0], [0, 1, 1], [0, 1], [2, 0]]
    assert repeat_factors(images).tolist() == [1.0] * 15 + [2.0]
    assert repeat_factors([[], [], []]).tolist() == [1, 1, 1]
    assert repeat_factors([[3], [], [3]]).tolist() == [1, 1, 1]


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
