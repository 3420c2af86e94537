"""The collectives of SyncBatchNorm, over a process group that is known by its name.

A layer keeps the name of its group and not the ProcessGroup object, which can be neither copied nor
pickled.

Compiled code uses the functional collectives, which torch.compile can trace. Eager code doesn't:
called eagerly on gloo, torch 2.15's corrupted the heap now and then when the machine was busy
(glibc aborts with "malloc(): unaligned tcache chunk detected"), and they take longer.

Processes on one host that run eagerly on the CPU can use a quicker exchange: `exchange_locally`.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from .local_exchange import LocalExchange, connect

# Up to this many ranks a gather followed by a local sum beats gloo's all_reduce, which makes two
# rounds over the ranks where the gather makes one.
GLOO_GATHER_RANKS = 8


# torch 2.14 prefers a new name for the same function, which 2.11 lacks.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


_local: LocalExchange | None = None


def exchange_locally(wanted: bool = True) -> bool:
    """Gather eager CPU rows over all ranks directly from process to process, if that is possible.

    The result of a collective is the same to the bit. Not for compiled models: where the compiler
    gives up on one rank alone, that rank would wait for the others in another place than they.

    Two collectives; every rank has to make the call. Returns whether it is possible.
    """
    global _local
    if _local is not None:
        _local.close()
    _local = connect() if wanted else None
    return _local is not None


class Group(NamedTuple):
    """A process group of more than one rank: its registered name and its size."""

    name: str
    size: int


def find_group(name: str | None) -> Group | None:
    """The group called `name` (None: all ranks), or None where there is nothing to synchronise."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if name is None else process_group(name)
    size = dist.get_world_size(group)
    return Group(group.group_name, size) if size > 1 else None


def gather(row: Tensor, group: Group) -> Tensor:
    """Every rank's `row`, (K,), as one (ranks, K) tensor. One collective."""
    row = row.contiguous()
    if torch.compiler.is_compiling():
        ops = torch.ops._c10d_functional
        # On gloo the gathered tensor comes flat, on NCCL by rows.
        flat = ops.wait_tensor(ops.all_gather_into_tensor(row, group.size, group.name))
        return flat.view(group.size, -1)
    ranks = process_group(group.name)
    if _local is not None and _local.takes(row, ranks):
        return _local.gather(row)
    flat = row.new_empty(group.size * row.numel())
    _all_gather(flat, row, ranks)
    return flat.view(group.size, -1)


def sum_over_ranks(vector: Tensor, group: Group) -> Tensor:
    """The sum of every rank's `vector`, bit-identical on all ranks. One collective."""
    if torch.compiler.is_compiling():
        ops = torch.ops._c10d_functional
        return ops.wait_tensor(ops.all_reduce(vector.contiguous(), "sum", group.name))
    if vector.device.type == "cpu" and group.size <= GLOO_GATHER_RANKS:
        return gather(vector, group).sum(0)
    total = vector.clone()
    dist.all_reduce(total, group=process_group(group.name))
    return total


def process_group(name: str) -> dist.ProcessGroup:
    """The process group that was registered under this name."""
    return distributed_c10d._resolve_process_group(name)


class SumOverRanks(torch.autograd.Function):
    """`sum_over_ranks` that can be differentiated any number of times.

    With the ranks' losses added up, the sum is its own adjoint: the gradient of what every rank did
    with the sum is again summed over the ranks.
    """

    @staticmethod
    def forward(ctx, vector: Tensor, group: Group) -> Tensor:
        """Sum `vector`, (K,), over the ranks of `group`."""
        ctx.group = group
        return sum_over_ranks(vector, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Sum the gradient over the ranks."""
        return SumOverRanks.apply(grad, ctx.group), None
