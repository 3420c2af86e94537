"""What would take many small launches on a GPU, as Triton kernels of one launch each.

The tests run them on the CPU, in Triton's interpreter.
"""

import warnings

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no CUDA build of torch: the plain version is used
    triton = None

BLOCK = 128
# torch's backward kernel takes the number of values as int32 parts that it adds up in 64 bits.
PARTS = 8

_works: dict[torch.device, bool] = {}  # the devices on which the kernels were tried


def can_launch(device: torch.device) -> bool:
    """Whether the kernels compile and start on ``device``; tried once, without waiting for it.

    Not tried while a CUDA graph is captured, which compiling would spoil: False where no layer ran
    before the capture.

    Warns:
        UserWarning: Triton is installed and can't compile, for want of a C compiler for instance.
    """
    if device not in _works:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
        _works[device] = triton is not None and _try(device)
    return _works[device]


def _try(device: torch.device) -> bool:
    try:
        one = torch.ones(1, device=device)
        combine_on_gpu(pack_on_gpu(one, one, 1)[None], 1e-5, None, None, None, None)
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        warnings.warn(
            f"SyncBatchNorm goes without its Triton kernels, which can't be compiled here "
            f"({type(error).__name__}: {error}): its statistics take about twenty launches per "
            "layer in place of two.",
            stacklevel=2,
        )
        return False
    return True


if triton is not None:

    @triton.jit
    def _pack(mean, var, number, row, channels, BLOCK: tl.constexpr):
        channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < channels
        tl.store(row + channel, tl.load(mean + channel, mask=inside), mask=inside)
        tl.store(row + channels + channel, tl.load(var + channel, mask=inside), mask=inside)
        tl.store(row + 2 * channels, number)

    @triton.jit
    def _combine(
        rows,
        mean_out,
        var_out,
        invstd_out,
        parts_out,
        running_mean,
        running_var,
        batches,
        eps,
        momentum,
        channels,
        ranks,
        TRACK: tl.constexpr,
        CUMULATIVE: tl.constexpr,
        BLOCK: tl.constexpr,
        PARTS: tl.constexpr,
    ):
        channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < channels
        width = 2 * channels + 1
        total = tl.load(rows + 2 * channels)
        for rank in range(1, ranks):
            total += tl.load(rows + rank * width + 2 * channels)
        divisor = tl.maximum(total, 1.0)
        mean = tl.zeros([BLOCK], dtype=mean_out.dtype.element_ty)
        for rank in range(0, ranks):
            row = rows + rank * width
            weight = tl.load(row + 2 * channels) / divisor
            mean += weight * tl.load(row + channel, mask=inside, other=0.0)
        var = tl.zeros([BLOCK], dtype=mean_out.dtype.element_ty)
        for rank in range(0, ranks):
            row = rows + rank * width
            weight = tl.load(row + 2 * channels) / divisor
            gap = tl.load(row + channel, mask=inside, other=0.0) - mean
            var += weight * (tl.load(row + channels + channel, mask=inside, other=0.0) + gap * gap)
        tl.store(mean_out + channel, mean, mask=inside)
        tl.store(var_out + channel, var, mask=inside)
        tl.store(invstd_out + channel, 1.0 / tl.sqrt(var + eps), mask=inside)
        # Every program stores the same numbers: no program waits for another.
        part = tl.arange(0, PARTS)
        share = total.to(tl.int64) // PARTS
        rest = total.to(tl.int64) - PARTS * share
        tl.store(parts_out + part, (share + tl.where(part == 0, rest, 0)).to(tl.int32))
        if TRACK:
            counted = total > 0
            if CUMULATIVE:
                # The caller has counted this batch: every program reads the number.
                step = 1.0 / tl.maximum(tl.load(batches).to(tl.float32), 1.0)
            else:
                step = momentum
                if tl.program_id(0) == 0:
                    tl.store(batches, tl.load(batches) + counted.to(tl.int64))
            step = tl.where(counted, step, 0.0)
            unbiased = var * (total / tl.maximum(total - 1.0, 1.0))
            old_mean = tl.load(running_mean + channel, mask=inside, other=0.0)
            old_var = tl.load(running_var + channel, mask=inside, other=0.0)
            new_mean = old_mean + step * (mean - old_mean)
            new_var = old_var + step * (unbiased - old_var)
            tl.store(running_mean + channel, new_mean, mask=inside)
            tl.store(running_var + channel, new_var, mask=inside)


def pack_on_gpu(mean: Tensor, var: Tensor, number: int) -> Tensor:
    """The row [mean, var, number], (2C+1,), of float32 statistics; one launch."""
    channels = len(mean)
    row = mean.new_empty(2 * channels + 1)
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(row):
        # As a float the number doesn't make Triton compile a kernel for every kind of integer.
        blocks = (triton.cdiv(channels, BLOCK),)
        _pack[blocks](mean, var, float(number), row, channels, BLOCK=BLOCK)
    return row


def combine_on_gpu(
    rows: Tensor,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``kernels.combine_and_track``; float32 rows. One launch, four where momentum is None."""
    rows = rows.contiguous()
    ranks, width = rows.shape
    channels = (width - 1) // 2
    mean, var, invstd = rows.new_empty(3, channels).unbind(0)
    total = rows.new_empty(PARTS, dtype=torch.int32)
    track = running_mean is not None
    if track and momentum is None:
        # Counted before the launch: its programs all read the number and could not also write it.
        batches.add_(rows[:, -1].sum() > 0)
    with torch.cuda.device_of(rows):
        _combine[(triton.cdiv(channels, BLOCK),)](
            rows,
            mean,
            var,
            invstd,
            total,
            running_mean if track else mean,
            running_var if track else var,
            batches if track else total,
            eps,
            0.0 if momentum is None else momentum,
            channels,
            ranks,
            TRACK=track,
            CUMULATIVE=momentum is None,
            BLOCK=BLOCK,
            PARTS=PARTS,
        )
    return mean, var, invstd, total
