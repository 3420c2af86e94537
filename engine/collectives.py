"""The few messages that processes exchange besides gradients and batch statistics."""

from typing import Any

import torch
import torch.distributed as dist


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
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
