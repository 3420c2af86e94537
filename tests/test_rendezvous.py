"""Restarted processes meet each other, not what their predecessors left in the store."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from engine.rendezvous import fresh_part

TIMEOUT = timedelta(seconds=20)


def attempt(store: dist.Store, ranks: range, world_size: int) -> dict[int, dist.Store]:
    """The parts that these ranks get; a thread stands for each process."""
    parts: dict[int, dist.Store] = {}

    def join(rank: int) -> None:
        parts[rank] = fresh_part(store, rank, world_size, TIMEOUT)

    threads = [threading.Thread(target=join, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return parts


def test_each_attempt_has_a_part_of_its_own() -> None:
    store = dist.HashStore()
    for number in range(3):
        parts = attempt(store, range(4), 4)
        assert sorted(parts) == [0, 1, 2, 3]
        assert not parts[0].check(["address"])  # nothing of the attempt before
        parts[3].set("address", str(number))
        assert all(part.get("address") == str(number).encode() for part in parts.values())


def test_a_process_that_died_while_meeting_is_not_waited_for() -> None:
    store = dist.HashStore()
    # Two of three said hello, and were killed before the first could answer.
    store.set("hello/1", "dead")
    store.set("hello/2", "dead too")
    parts = attempt(store, range(3), 3)
    parts[1].set("key", "value")
    assert parts[0].get("key") == parts[2].get("key") == b"value"


def test_a_process_that_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"processes \[1\] of 2"):
        fresh_part(dist.HashStore(), 0, 2, timedelta(seconds=0.2))
