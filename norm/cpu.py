"""What a rank computes on the CPU between the collectives, in fewer passes and cheaper calls.

Eager mode only; ``kernels`` has the plain versions, and says what is computed.
"""

import torch
from torch import Tensor

try:
    import numpy
except ImportError:  # torch can do without; the plain version is used
    numpy = None

# Values per channel that torch's kernel adds up one after the other in float32. Its error grows
# with their number: of 100,000 it is 3e-5 of the variance, of 2,048 less than 2e-6.
BLOCK = 2048


def is_channels_last(x: Tensor) -> bool:
    """Whether x, (N, C, ...), lies in memory as (N, ..., C), and not also as (N, C, ...)."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def channels_last_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each block of values, by the kernel of BatchNorm.

    A block is small enough for the cache: the kernel's two passes read the memory once.

    Args:
        x: (N, C, ...), not empty, channels-last in memory, float32 or float64.

    Returns:
        rows: (blocks, 2C+1): mean (C), biased variance (C) and number of values of each block.
    """
    rows = []
    for block in x.movedim(1, -1).reshape(1, 1, -1, x.size(1)).split(BLOCK, dim=2):
        mean, var = torch.batch_norm_update_stats(block.permute(0, 3, 1, 2), None, None, 0.0)
        rows.append(torch.cat([mean, var, mean.new_full((1,), block.size(2))]))
    return torch.stack(rows)


def can_combine(rows: Tensor) -> bool:
    """Whether ``combine_and_track`` takes these rows: plain numbers in the host's memory."""
    plain = numpy is not None and type(rows) is Tensor and rows.device.type == "cpu"
    return plain and not torch._C._are_functorch_transforms_active()


def combine_and_track(
    rows: Tensor,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``kernels.combine_and_track``: the same bits, in numpy.

    The vectors are short: what a call costs decides, and numpy's cost a fifth of torch's.
    """
    values = rows.numpy()
    channels = (values.shape[1] - 1) // 2
    means, variances = values[:, :channels], values[:, channels:-1]
    numbers = values[:, -1:]
    total = numbers.sum()
    weights = numbers / max(total, 1)
    mean = (weights * means).sum(0)
    var = (weights * (variances + (means - mean) ** 2)).sum(0)
    invstd = 1 / numpy.sqrt(var + values.dtype.type(eps))
    if running_mean is not None:
        counts = bool(total > 0)
        batches.add_(counts)
        if momentum is None:
            momentum = 1 / max(1, int(batches))
        step = float(values.dtype.type(momentum)) if counts else 0.0
        unbiased = var * (total / max(total - 1, 1))
        for running, new in ((running_mean, mean), (running_var, unbiased)):
            running.lerp_(torch.from_numpy(new).to(running.dtype), step)
    mean, var, invstd = (torch.from_numpy(array) for array in (mean, var, invstd))
    return mean, var, invstd, torch.as_tensor(total)
