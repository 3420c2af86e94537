"""Loaders over the stream of samples.

They are not given to ``accelerator.prepare``: the batches are already this process's own, and
preparing them would split them a second time.

Their workers are forked once, before training starts, and live as long as the run. A fork copies
the locks that other threads hold at that moment, but not the threads that would release them. When
workers were forked at every evaluation, in the middle of training, one hung for ever.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from data.stream import RankBatches, RankShard, SampleStream
from engine.plan import Plan
from engine.stop import leave_signals_to_the_loop
from engine.task import Batch, Task

MOST_WORKERS = 8
# Up to this many samples, starting workers takes longer than they save.
SMALL_DATA = 64


class Loading(NamedTuple):
    """How batches are loaded: workers per process, and whether into memory that a GPU can read."""

    workers: int
    pin_memory: bool


def count_workers(num_workers: int | str, num_samples: int) -> int:
    """The loader workers of a process that ``--num_workers`` asks for.

    "auto" is the machine's processors divided by its processes, at most 8, or 0 for small data.
    Where processes can't fork there are none.

    Args:
        num_workers: a number, or "auto".
        num_samples: size of the training data.
    """
    if "fork" not in multiprocessing.get_all_start_methods():  # Windows
        return 0
    if num_workers != "auto":
        return int(num_workers)
    if num_samples <= SMALL_DATA:
        return 0
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    processors = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    world_size = os.environ.get("WORLD_SIZE", "1")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return min(MOST_WORKERS, max(1, processors // processes))


def train_batches(
    task: Task,
    stream: SampleStream,
    plan: Plan,
    rank: int,
    start: int,
    stop: int,
    loading: Loading,
) -> Iterator[Batch]:
    """This process's micro-batches between two positions in the stream; the workers start now."""
    batches = RankBatches(stream, plan.batch_size, rank, plan.num_processes, start, stop)
    return iter(make_loader(task.train_data, task.collate_train, loading, batch_sampler=batches))


def precise_loader(
    task: Task, stream: SampleStream, plan: Plan, rank: int, stop: int, loading: Loading
) -> DataLoader:
    """The stream's first batches, as often as needed; the workers start now."""
    batches = RankBatches(stream, plan.batch_size, rank, plan.num_processes, 0, stop)
    return started(make_loader(task.train_data, task.collate_train, loading, batch_sampler=batches))


def eval_loader(task: Task, plan: Plan, rank: int, loading: Loading) -> DataLoader:
    """This process's share of the validation data, every sample once; the workers start now."""
    shard = RankShard(len(task.val_data), rank, plan.num_processes)
    data, collate, size = task.val_data, task.collate_eval, plan.batch_size
    return started(make_loader(data, collate, loading, sampler=shard, batch_size=size))


def make_loader(
    dataset: Dataset, collate: Callable, loading: Loading, **batches: Any
) -> DataLoader:
    """A loader whose workers live as long as it and leave signals to the process that trains.

    Args:
        dataset: of samples.
        collate: makes a batch of samples.
        loading: workers and pinned memory.
        **batches: the sampler and batch size, or the batch sampler, as DataLoader takes them.
    """
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=loading.workers,
        persistent_workers=loading.workers > 0,
        # Also where Python starts processes in another way by default (3.14).
        multiprocessing_context="fork" if loading.workers else None,
        pin_memory=loading.pin_memory,
        worker_init_fn=leave_signals_to_the_loop,
        **batches,
    )


def started(loader: DataLoader) -> DataLoader:
    """Start the workers; the next ``iter()`` begins anew with the same ones."""
    if loader.num_workers:
        iter(loader)
    return loader


def stop_workers(*sources: DataLoader | Iterator | None) -> None:
    """End the workers of loaders, or of their iterators, now.

    If they are left to the garbage collector after an exception, torch waits 10 seconds for each:
    the collector has already closed the queue through which the worker would be told to end.
    """
    for source in sources:
        iterator = getattr(source, "_iterator", source)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
