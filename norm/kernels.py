"""The arithmetic of SyncBatchNorm: what one rank computes between the two collectives.

Notation (N_r values per channel on rank r, W ranks, C channels):

    forward    m_r, v_r    mean and biased variance of the local values
               N = Σ n_r   μ = Σ n_r m_r / N   σ² = Σ n_r (v_r + (m_r - μ)²) / N   i = 1/√(σ² + ε)
               y = w (x - μ) i + b        w and b: the layer's weight and bias
    backward   A = Σ g     B = Σ g x̂           over all ranks, with x̂ = (x - μ) i
               dx = w i (g - A/N - x̂ B/N)      db = A and dw = B of the local values

On CUDA the second sum that the ranks exchange is B/i = Σ g (x - μ), as torch's kernels take it.

Combining means and variances (Chan, Golub and LeVeque, 1979) keeps the precision that the sums of x
and x² lose: at mean/std = 1e3 those are 19 % wrong in float32.

Each step has one plain version, which is what torch.compile traces and every device can run, and
native versions that need fewer passes (CPU) or fewer kernel launches (CUDA) in eager mode. On a
GPU nothing here reads a value on the host.
"""

import torch
from torch import Tensor

from . import cpu
from .fused import PARTS, can_launch, combine_on_gpu, pack_on_gpu


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 input and float32 for anything shorter."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, and ``x`` itself where it has that dtype.

    While compiling, ``to`` gives a new name to the same tensor. torch 2.11 returns every name of an
    autograd function's forward from its graph, and sends the gradient to the last name of a tensor:
    the output's own gradient became zero, and with it every gradient behind the layer.
    """
    return x if x.dtype == dtype else x.to(dtype)


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is contiguous or channels_last(_3d), else a contiguous copy."""
    if x.is_contiguous():
        return x
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    return x.contiguous()


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` laid out in memory as ``x`` is: the native kernels want both alike."""
    if grad.stride() == x.stride():
        return grad
    return torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """A (C,) vector shaped to broadcast against x, (N, C, ...)."""
    return vector.view([1, -1] + [1] * (x.dim() - 2))


def _all_but_channel(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _native_cpu(x: Tensor) -> bool:
    # Half precision takes the plain version: it computes in float32 and rounds once.
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and _eager(x)


def _native_cuda(x: Tensor) -> bool:
    return x.device.type == "cuda" and _eager(x)


def _eager(x: Tensor) -> bool:
    # The native kernels refuse empty input. While compiling there is no branch on emptiness: a
    # constant in place of a sum would let the compiler move the collective to another place in the
    # program than on the other ranks.
    return not torch.compiler.is_compiling() and x.numel() > 0


def local_statistics(x: Tensor) -> Tensor:
    """One row of what this rank knows: [mean (C), biased variance (C), number of values (1)].

    An empty x gives zeros: it weighs nothing in ``combine``.

    Args:
        x: (N, C, ...), dense.

    Returns:
        (2C+1,) in the accumulation dtype.
    """
    dtype, number = accumulation_dtype(x), x.numel() // x.size(1)
    if _native_cuda(x):
        # channels_last_3d has no kernel of its own, and the general one rounds the mean of float16
        # to float16. With two of its dimensions taken as one, such an x is channels_last.
        flat = x if x.dim() < 5 or x.is_contiguous() else x.flatten(2, 3)
        mean, var = torch.batch_norm_update_stats(flat, None, None, 0.0)
        if mean.dtype == torch.float32 and can_launch(x.device):
            return pack_on_gpu(mean, var, number)
        return torch.cat([mean, var, mean.new_full((1,), number)])
    row = cpu.channels_last_statistics(x) if _native_cpu(x) else None
    if row is not None:
        return row
    number = torch.full((1,), number, dtype=dtype, device=x.device)
    # Two passes. Faster on CPU than var_mean (10x), and for contiguous x than BatchNorm's own
    # kernel (2x).
    axes = _all_but_channel(x)
    at_least_one = number.clamp(min=1)
    mean = x.sum(axes, dtype=dtype) / at_least_one
    centred = cast(x, dtype) - _per_channel(mean, x)
    return torch.cat([mean, centred.square_().sum(axes) / at_least_one, number])


def combine(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics of the joined batch from every rank's row of ``local_statistics``.

    Args:
        rows: (ranks, 2C+1).

    Returns:
        mean (C,), biased variance (C,), number of values (a scalar tensor). All zero where every
        rank is empty.
    """
    channels = (rows.size(1) - 1) // 2
    means, variances, numbers = rows.split([channels, channels, 1], dim=1)
    total = numbers.sum()
    weights = numbers / total.clamp(min=1)
    mean = (weights * means).sum(0)
    var = (weights * (variances + (means - mean).square())).sum(0)
    return mean, var, total


def combine_and_track(
    rows: Tensor,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``combine``, then move the running statistics towards the result, in place.

    The step is ``momentum``, or 1/(number of batches) where momentum is None, or nothing where the
    joined batch is empty. The running variance takes the unbiased variance as BatchNorm's does; of
    a single value, whose unbiased variance would be 0/0, it takes the biased one, 0.

    Args:
        rows: (ranks, 2C+1).
        eps: added to the variance.
        running_mean: (C,) or None: nothing is tracked.
        running_var: (C,) or None.
        batches: the number of batches tracked (a scalar tensor) or None.
        momentum: weight of the new value, or None for the cumulative average.

    Returns:
        mean (C,), biased variance (C,), 1/√(variance + eps) (C,), and the number of values: a
        scalar tensor or, on CUDA in eager mode, int32 (PARTS,), whose sum it is.
    """
    if not torch.compiler.is_compiling() and cpu.are_plain(rows):
        return cpu.combine_and_track(rows, eps, running_mean, running_var, batches, momentum)
    fused = rows.device.type == "cuda" and rows.dtype == torch.float32
    if fused and not torch.compiler.is_compiling() and can_launch(rows.device):
        return combine_on_gpu(rows, eps, running_mean, running_var, batches, momentum)
    mean, var, total = combine(rows)
    if running_mean is not None:
        counts = total > 0
        batches.add_(counts)
        step = counts.to(total.dtype)
        step = step / batches.clamp(min=1) if momentum is None else step * momentum
        unbiased = var * (total / (total - 1).clamp(min=1))
        step = step.to(running_mean.dtype)
        running_mean.lerp_(mean.to(running_mean.dtype), step)
        running_var.lerp_(unbiased.to(running_var.dtype), step)
    if rows.device.type == "cuda" and not torch.compiler.is_compiling():
        total = _in_parts(total)
    return mean, var, (var + eps).rsqrt(), total


def _in_parts(total: Tensor) -> Tensor:
    """A number of values as int32 (PARTS,), whose sum it is; an int32 alone ends at 2³¹."""
    share, rest = total.long() // PARTS, total.long() % PARTS
    parts = share.repeat(PARTS)
    parts[0] += rest
    return parts.int()


def normalise(x, weight, bias, mean, var, invstd, eps):
    """y = w (x - μ) i + b in x's dtype and memory format.

    Args:
        x: (N, C, ...), dense.
        weight: (C,) in the accumulation dtype, or None for 1.
        bias: (C,) in the accumulation dtype, or None for 0.
        mean: μ, (C,).
        var: σ², (C,).
        invstd: i, (C,).
        eps: ε, as in invstd.
    """
    # The native CPU kernel computes x (w i) + (b - μ w i). Of one value per channel in all, whose
    # variance is 0, that leaves the rounding error of two large numbers, where the plain version
    # gives b.
    if _native_cpu(x) and (x.numel() > x.size(1) or var.any()):
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
    if _native_cuda(x):
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
    scale = invstd if weight is None else invstd * weight
    y = (cast(x, mean.dtype) - _per_channel(mean, x)) * _per_channel(scale, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return cast(y, x.dtype)


def gradient_sums(grad, x, weight, mean, var, invstd, eps) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's sums of the backward pass.

    Args:
        grad: g, like x.
        x: (N, C, ...), dense.
        weight: (C,) in the accumulation dtype, or None.
        mean: μ, (C,).
        var: σ², (C,).
        invstd: i, (C,).
        eps: ε, as in invstd.

    Returns:
        [A, B], or [A, B/i] on CUDA, (2C,), which ``input_gradient`` takes when it has been summed
        over the ranks; dw (C,) and db (C,). On CUDA the first shares no memory with the others.
    """
    if _native_cpu(x):
        # BatchNorm's backward in evaluation mode computes just these two sums, in one pass.
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            _like(grad, x), x, invstd, mean, var, None, None, False, eps, [False, True, True]
        )
        return torch.cat([dbias, dweight]), dweight, dbias
    if _native_cuda(x):
        affine = weight is not None
        sum_grad, sum_grad_xmu, dweight, dbias = torch.batch_norm_backward_reduce(
            _like(grad, x), x, mean, invstd, weight, True, affine, affine
        )
        return torch.cat([sum_grad, sum_grad_xmu]), dweight, dbias
    axes = _all_but_channel(x)
    grad = cast(grad, mean.dtype)
    centred = cast(x, mean.dtype) - _per_channel(mean, x)
    dbias = grad.sum(axes)
    if x.device.type == "cuda":
        sum_grad_xmu = (grad * centred).sum(axes)
        return torch.cat([dbias, sum_grad_xmu]), sum_grad_xmu * invstd, dbias
    dweight = (grad * (centred * _per_channel(invstd, x))).sum(axes)
    return torch.cat([dbias, dweight]), dweight, dbias


def input_gradient(grad, x, weight, mean, var, invstd, eps, sums, total) -> Tensor:
    """dx = w i (g - A/N - x̂ B/N) in x's dtype and memory format.

    Args:
        grad: g, like x.
        x: (N, C, ...), dense.
        weight: (C,) in the accumulation dtype, or None for 1.
        mean: μ, (C,).
        var: σ², (C,).
        invstd: i, (C,).
        eps: ε, as in invstd.
        sums: those of ``gradient_sums`` over all ranks, (2C,).
        total: N as ``combine_and_track`` gives it.
    """
    if _native_cuda(x):
        return torch.batch_norm_backward_elemt(
            _like(grad, x), x, mean, invstd, weight, *sums.chunk(2), total
        )
    sum_grad, sum_grad_x = sums.chunk(2)
    at_least_one = total.sum().clamp(min=1)
    scale = invstd if weight is None else invstd * weight
    if _native_cpu(x):
        # -w i (x̂ B/N + A/N) is a BatchNorm of x with other coefficients; adding w i g is a second
        # pass, in place.
        factor = -scale / at_least_one
        dx = torch.native_batch_norm(
            x, factor * sum_grad_x, factor * sum_grad, mean, var, False, 0.0, eps
        )[0]
        return dx.addcmul_(_like(grad, x), _per_channel(scale, x))
    if x.device.type == "cuda":
        sum_grad_x = sum_grad_x * invstd
    mean_grad = _per_channel(sum_grad / at_least_one, x)
    slope = _per_channel(sum_grad_x * invstd / at_least_one, x)
    centred = cast(x, mean.dtype) - _per_channel(mean, x)
    dx = (cast(grad, mean.dtype) - mean_grad - centred * slope) * _per_channel(scale, x)
    return cast(dx, x.dtype)
