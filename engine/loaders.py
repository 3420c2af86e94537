"""Loaders over the stream of samples.

They are not given to ``accelerator.prepare``: the batches are already this process's own, and
preparing them would split them a second time.

Their workers are forked once, before training starts, and live as long as the run. A fork copies
the locks that other threads hold at that moment and not the threads that would release them; forked
at every evaluation, in the middle of training, a worker was seen to hang for ever in the fork.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from data.stream import RankBatches, RankShard, SampleStream
from engine.plan import Plan
from engine.stop import leave_signals_to_the_loop
from engine.task import Batch, Task


class Loading(NamedTuple):
    """How batches are loaded: workers per process, and whether into memory that a GPU can read."""

    workers: int
    pin_memory: bool


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
    return iter(_loader(task.train_data, task.collate_train, loading, batch_sampler=batches))


def precise_loader(
    task: Task, stream: SampleStream, plan: Plan, rank: int, stop: int, loading: Loading
) -> DataLoader:
    """The stream's first batches, as often as needed; the workers start now."""
    batches = RankBatches(stream, plan.batch_size, rank, plan.num_processes, 0, stop)
    return _started(_loader(task.train_data, task.collate_train, loading, batch_sampler=batches))


def eval_loader(task: Task, plan: Plan, rank: int, loading: Loading) -> DataLoader:
    """This process's share of the validation data, every sample once; the workers start now."""
    shard = RankShard(len(task.val_data), rank, plan.num_processes)
    data, collate, size = task.val_data, task.collate_eval, plan.batch_size
    return _started(_loader(data, collate, loading, sampler=shard, batch_size=size))


def _loader(dataset: Dataset, collate: Callable, loading: Loading, **batches: Any) -> DataLoader:
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


def _started(loader: DataLoader) -> DataLoader:
    """Start the workers; the next ``iter()`` begins anew with the same ones."""
    if loader.num_workers:
        iter(loader)
    return loader


def stop_workers(*sources: DataLoader | Iterator | None) -> None:
    """End the workers of loaders, or of their iterators, now.

    Left to the garbage collector after an exception, torch waits 10 seconds for each worker: the
    collector has already closed the queue through which the worker would be told to end.
    """
    for source in sources:
        iterator = getattr(source, "_iterator", source)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
