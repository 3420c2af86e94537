"""What a rank computes on the CPU between the collectives, in fewer passes and cheaper calls.

Eager mode only; ``kernels`` has the plain versions, and says what is computed.
"""

import torch
from torch import Tensor

try:
    import numpy
except ImportError:  # torch can do without; the plain versions are used
    numpy = None

# Values per channel that torch's kernel adds up one after the other in float32. Its error grows
# with their number: of 100,000 it is 3e-5 of the variance, of 2,048 less than 2e-6.
BLOCK = 2048
# Blocks know their means to float32. Where a channel's squared mean is larger than this times its
# variance, the distances between them are too coarse.
LEVEL = 1e3


def are_plain(tensor: Tensor) -> bool:
    """Whether numpy can take the numbers: in the host's memory, and nothing looks on."""
    plain = numpy is not None and type(tensor) is Tensor and tensor.device.type == "cpu"
    return plain and not torch._C._are_functorch_transforms_active()


def channels_last_statistics(x: Tensor) -> Tensor | None:
    """``kernels.local_statistics`` in one pass over the memory, by the kernel of BatchNorm.

    It takes a block that fits into the cache at a time.

    Args:
        x: (N, C, ...), not empty, float32 or float64.

    Returns:
        (2C+1,); None where the plain version has to be taken: x is not channels-last in memory, or
        the precision would suffer.
    """
    if x.is_contiguous() or not x.movedim(1, -1).is_contiguous() or not are_plain(x):
        return None
    rows = []
    for block in x.detach().movedim(1, -1).reshape(1, 1, -1, x.size(1)).split(BLOCK, dim=2):
        mean, var = torch.batch_norm_update_stats(block.permute(0, 3, 1, 2), None, None, 0.0)
        rows.append(torch.cat([mean, var, mean.new_full((1,), block.size(2))]))
    mean, var, total = _combined(torch.stack(rows).numpy())
    if (mean * mean > LEVEL * var).any():
        return None
    return torch.from_numpy(numpy.concatenate([mean, var, total[None]]))


def _combined(rows: "numpy.ndarray") -> tuple["numpy.ndarray", ...]:
    """``kernels.combine``: mean (C,), biased variance (C,), number of values (scalar)."""
    channels = (rows.shape[1] - 1) // 2
    means, variances, numbers = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    total = numbers.sum()
    weights = numbers / max(total, 1)
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean) ** 2)).sum(0), total


def combine_and_track(
    rows: Tensor,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``kernels.combine_and_track``; up to four ranks the same bits, beyond to rounding.

    The vectors are short: what a call costs decides, and numpy's cost less than torch's.
    """
    mean, var, total = _combined(rows.detach().numpy())
    invstd = 1 / numpy.sqrt(var + mean.dtype.type(eps))
    if running_mean is not None:
        counts = bool(total > 0)
        batches.add_(counts)
        if momentum is None:
            momentum = 1 / max(1, int(batches))
        step = float(mean.dtype.type(momentum)) if counts else 0.0
        unbiased = var * (total / max(total - 1, 1))
        for running, new in ((running_mean, mean), (running_var, unbiased)):
            running.lerp_(torch.from_numpy(new).to(running.dtype), step)
    return *map(torch.from_numpy, (mean, var, invstd)), torch.as_tensor(total)
