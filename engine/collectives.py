"""The few messages that processes exchange besides gradients and batch statistics."""

from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Add a tensor over all processes, in place (one collective; none for a single process)."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def from_main_process(value: Any) -> Any:
    """The main process's value, on every process (one collective of pickled host data)."""
    return broadcast_object_list([value])[0]


def gather_lists(values: list) -> list:
    """The lists of all processes joined, on the main process; [] on the others (one collective).

    The entries must be host data that can be pickled. Accelerate's ``gather_object`` would send all
    of them to every process.
    """
    if not is_distributed():
        return values
    main = dist.get_rank() == 0
    lists: list | None = [None] * dist.get_world_size() if main else None
    dist.gather_object(values, lists, dst=0)
    return [value for part in lists for value in part] if main else []
