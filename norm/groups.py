"""The collectives of SyncBatchNorm, over a process group that is known by its name.

A layer keeps the name of its group and not the ProcessGroup object, which can be neither copied nor
pickled.

Compiled code makes the same calls as eager code, as two operators that ``torch.compile`` takes as
they are: a rank whose compiler gives up meets the others in the same collectives. torch's
functional collectives can be traced too. While compiled code used them on gloo with torch 2.14 and
2.15, processes now and then ended with a corrupted heap ("malloc(): unaligned tcache chunk
detected"); with these operators none has.

Processes on one host that run eagerly on the CPU can use a quicker exchange: ``exchange_locally``.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.nn import functional

from .local_exchange import LocalExchange, connect

# Up to this many ranks a gather followed by a local sum beats gloo's all_reduce, which makes two
# rounds over the ranks where the gather makes one.
GLOO_GATHER_RANKS = 8

# The options of torch.compile for a network with several ranks. By default Inductor orders the
# collectives of parallel branches as the memory asks: a rank that compiled another graph, or runs
# eagerly, would meet the others in different collectives.
COMPILE_OPTIONS = {"reorder_for_peak_memory": False}


# torch 2.14 prefers a new name for the same function, which 2.11 lacks.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


# The one that ``exchange_locally`` made, or None.
_local: LocalExchange | None = None


def exchange_locally(wanted: bool = True) -> bool:
    """Gather eager CPU rows over all ranks directly from process to process, if that is possible.

    The result of a collective is the same to the bit. Not for compiled models, whose layers have no
    number: where the compiler gives up on one rank alone, that rank would seem to be at another
    layer than the others, and raise.

    Two collectives; every rank has to make the call. Returns whether it is possible.
    """
    global _local
    if _local is not None:
        _local.close()
    _local = connect() if wanted else None
    return _local is not None


class Group(NamedTuple):
    """A process group of more than one rank.

    Attributes:
        name: under which torch registered it.
        size: number of ranks.
        layer: number of the layer that calls, by which a direct exchange tells layers apart.
    """

    name: str
    size: int
    layer: int = 0


def find_group(name: str | None) -> Group | None:
    """The group called ``name`` (None: all ranks); None where there is nothing to synchronise."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    if name is None:
        name, size = dist.group.WORLD.group_name, dist.get_world_size()
    else:
        size = _size(name)
    return Group(name, size) if size > 1 else None


def gather(row: Tensor, group: Group) -> Tensor:
    """Every rank's ``row``, (K,), as one (ranks, K) tensor. One collective."""
    if torch.compiler.is_compiling():
        rows = row.new_empty(group.size, row.numel())
        _gather_into(rows, row, group.name)
        return rows
    row, ranks = row.contiguous(), process_group(group.name)
    if _local is not None and _local.takes(row, ranks):
        return _local.gather(row, group.layer)
    if row.device.type == "cuda" and _is_gloo(ranks):
        return gather_by_sum(row, group)
    flat = row.new_empty(group.size * row.numel())
    _all_gather(flat, row, ranks)
    return flat.view(group.size, -1)


def sum_over_ranks(vector: Tensor, group: Group, in_place: bool = False) -> Tensor:
    """The sum of every rank's ``vector``, bit-identical on all ranks. One collective.

    Args:
        vector: (K,), as long on all ranks.
        group: of the ranks.
        in_place: whether ``vector`` may be overwritten.
    """
    if vector.device.type == "cpu" and group.size <= GLOO_GATHER_RANKS:
        return gather(vector, group).sum(0)
    return _all_reduce(vector, group.name, in_place)


def gather_by_sum(row: Tensor, group: Group) -> Tensor:
    """``gather`` for CUDA tensors on gloo, which sums them in all versions and gathers in some."""
    before = dist.get_rank(process_group(group.name)) * row.numel()
    after = (group.size - 1) * row.numel() - before
    padded = functional.pad(row, (before, after))
    return _all_reduce(padded, group.name, in_place=True).view(group.size, -1)


def _all_reduce(tensor: Tensor, name: str, in_place: bool) -> Tensor:
    total = tensor if in_place else tensor.clone(memory_format=torch.contiguous_format)
    if torch.compiler.is_compiling():
        _all_reduce_in_place(total, name)
    else:
        dist.all_reduce(total, group=process_group(name))
    return total


# The operators of compiled code. Both write into an argument: one that doesn't may be left out by
# the compiler, as on a rank whose input gradient is empty, while the other ranks wait for it. Their
# namespace is the folder's name, because two copies of it may be imported into one process.
_NAMESPACE = __package__.replace(".", "_")


@torch.library.custom_op(f"{_NAMESPACE}::gather_into", mutates_args=("rows",))
def _gather_into(rows: Tensor, row: Tensor, name: str) -> None:
    rows.copy_(gather(row, Group(name, len(rows))))


@torch.library.custom_op(f"{_NAMESPACE}::all_reduce", mutates_args=("total",))
def _all_reduce_in_place(total: Tensor, name: str) -> None:
    dist.all_reduce(total, group=process_group(name))


def _is_gloo(group: dist.ProcessGroup) -> bool:
    """Whether CUDA tensors go by gloo, as between several ranks on one GPU."""
    return group._get_backend(torch.device("cuda")).name() == "gloo"


@torch.compiler.assume_constant_result  # which torch.compile can't trace
def _size(name: str) -> int:
    return dist.get_world_size(process_group(name))


def process_group(name: str) -> dist.ProcessGroup:
    """The process group that was registered under this name."""
    return distributed_c10d._resolve_process_group(name)


class SumOverRanks(torch.autograd.Function):
    """``sum_over_ranks`` that can be differentiated any number of times.

    With the ranks' losses added up, the sum is its own adjoint: the gradient of what every rank did
    with the sum is again summed over the ranks.
    """

    @staticmethod
    def forward(vector: Tensor, group: Group) -> Tensor:
        """Sum ``vector``, (K,), over the ranks of ``group``."""
        return sum_over_ranks(vector, group)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Note the group."""
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Sum the gradient over the ranks."""
        return SumOverRanks.apply(grad, ctx.group), None
