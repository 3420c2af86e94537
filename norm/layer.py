"""SyncBatchNorm: BatchNorm over the joined batch of all processes.

    model, names = convert_norm(model, "sync_bn")       # before DDP or Accelerate wrap it
    model = DistributedDataParallel(model, broadcast_buffers=False)

Ioffe and Szegedy, 2015 (arXiv:1502.03167), with the statistics of all ranks as in Peng et al., 2018
(MegDet, arXiv:1711.07240). docs/syncbn.md says what is synchronised when.
"""

import functools
import sys
import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from . import kernels
from .groups import Group, SumOverRanks, find_group, gather, sum_over_ranks

# Functions that rightly run a training forward with gradients off: they want the statistics
# (norm/running_stats.py, torch.optim.swa_utils), or run it again for the gradients
# (torch.utils.checkpoint, the reentrant kind).
WITHOUT_GRADIENTS = {"precise_bn", "update_bn", "CheckpointFunction.forward"}


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of all ranks' values together.

    Takes what BatchNorm1d, 2d and 3d take: (N, C), (N, C, L), (N, C, H, W), (N, C, T, H, W), with
    any N on any rank, 0 included. One collective in the forward (2C+1 numbers per rank), one in
    the backward (2C numbers); the statistics are bit-identical on all ranks, and no value is read
    on the host. In evaluation, in a group of one rank, and where torch.distributed is not
    initialised, it is exactly BatchNorm. The state_dict has BatchNorm's keys.

    The gradients of weight and bias are the local ones: DDP averages them as any other.

    Every rank has to call the layer the same number of times, forward and backward. A rank with
    nothing to compute calls it with x[:0] and keeps the output in its loss.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the new value in the running statistics; None for their plain average.
        affine: whether there is a weight and a bias.
        track_running_stats: whether there are running statistics.
        group_name: name of the process group to synchronise in (``group.group_name``); None for all
            ranks. The group must exist in every process where the layer runs.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Raises:
        ValueError: input with fewer than 2 dimensions or with another number of channels.
        NotImplementedError: input that isn't floating-point; forward-mode differentiation;
            ``torch.jit.script`` and ``torch.fx.symbolic_trace``.

    Warns:
        UserWarning: once per process, of a forward in training mode with gradients off, which most
            likely is an evaluation without ``eval()``.
    """

    # Defaults for a BatchNorm that ``convert_norm`` turned into this class.
    group_name: str | None = None
    # The layer's place in its model, set by ``convert_norm``: by it, ranks that exchange their rows
    # directly notice that they are at different layers.
    number: int = 0

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        group_name: str | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.group_name = group_name

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"Expected input of shape (N, C, ...), got {input.dim()} dimensions.")

    def __prepare_scriptable__(self) -> None:
        """Called by ``torch.jit.script``, whose language has no collectives."""
        raise NotImplementedError(
            "SyncBatchNorm can't be scripted: script the model before convert_norm, or change it "
            'back first by convert_norm(model, "bn").'
        )

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``input``, (N, C, ...); the output has its shape, dtype and memory format."""
        if isinstance(input, torch.fx.Proxy):
            raise NotImplementedError(
                "SyncBatchNorm can't be traced symbolically: trace the model first and call "
                "convert_norm on the result."
            )
        if self.training and not (torch.compiler.is_compiling() or torch.is_grad_enabled()):
            _warn_of_training_mode()
        group = find_group(self.group_name) if self.training else None
        if group is None:
            if self.training and getattr(self, "_is_replica", False):
                raise RuntimeError(
                    "torch.nn.DataParallel's replicas share no statistics, so SyncBatchNorm would "
                    "be plain BatchNorm: start a process per GPU (accelerate launch) instead."
                )
            return super().forward(input)
        self._check_input_dim(input)
        if input.size(1) != self.num_features:
            raise ValueError(f"Expected {self.num_features} channels, got {input.size(1)}.")
        if not input.is_floating_point():
            raise NotImplementedError(
                f"SyncBatchNorm needs floating-point input, got {input.dtype}."
            )
        _refuse_forward_ad(input, self.weight, self.bias)
        x, normalise = kernels.dense(input), _Normalise
        values = x  # of which the statistics are taken
        if not torch.compiler.is_compiling():
            group = group._replace(layer=self.number)
            if torch._C._are_functorch_transforms_active():
                values, normalise = _unwrapped(x), _NormaliseInTransform
        with torch.no_grad():
            rows = gather(kernels.local_statistics(values), group)  # collective
            tracks = self.running_mean is not None and not _recomputing()
            mean, var, invstd, total = kernels.combine_and_track(
                rows,
                self.eps,
                self.running_mean if tracks else None,
                self.running_var if tracks else None,
                self.num_batches_tracked if tracks else None,
                self.momentum,
            )
        return normalise.apply(x, self.weight, self.bias, mean, var, invstd, total, self.eps, group)

    def extra_repr(self) -> str:
        """BatchNorm's arguments, and the group where there is one."""
        group = "" if self.group_name is None else f", group_name={self.group_name!r}"
        return super().extra_repr() + group


class _Normalise(torch.autograd.Function):
    """y = w (x - μ) i + b, where μ and i depend on every rank's x."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, invstd, total, eps, group: Group):
        ctx.save_for_backward(x, weight, bias, mean, var, invstd, total)
        ctx.eps = eps
        ctx.group = group
        return _normalise(x, weight, bias, mean, var, invstd, eps)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, mean, var, invstd, total = ctx.saved_tensors
        eps, group = ctx.eps, ctx.group
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            number = total.sum().to(mean.dtype).clamp(min=1)
            dx, dweight, dbias = _differentiable_backward(grad, x, weight, number, eps, group)
        else:
            gamma = None if weight is None else kernels.cast(weight, mean.dtype)
            sums, dweight, dbias = kernels.gradient_sums(grad, x, gamma, mean, var, invstd, eps)
            dx = None
            if ctx.needs_input_grad[0]:
                sums = sum_over_ranks(
                    sums, group, in_place=sums.device.type == "cuda"
                )  # collective
                dx = kernels.input_gradient(grad, x, gamma, mean, var, invstd, eps, sums, total)
        dweight = dweight.to(weight.dtype) if ctx.needs_input_grad[1] else None
        dbias = dbias.to(bias.dtype) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None, None, None, None, None


class _NormaliseInTransform(_Normalise):
    """The same in the form that ``torch.func`` asks for, which takes five times as long to call."""

    @staticmethod
    def forward(x, weight, bias, mean, var, invstd, total, eps, group: Group):
        return _normalise(x, weight, bias, mean, var, invstd, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.eps, ctx.group = inputs
        ctx.save_for_backward(*tensors)


def _normalise(x, weight, bias, mean, var, invstd, eps):
    weight, bias = (p if p is None else kernels.cast(p, mean.dtype) for p in (weight, bias))
    return kernels.normalise(x, weight, bias, mean, var, invstd, eps)


def _unwrapped(x: Tensor) -> Tensor:
    """The values of ``x``, without what ``torch.func.grad`` notes about them."""
    while torch._C._functorch.is_gradtrackingtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def _differentiable_backward(grad, x, weight, number, eps, group):
    """The same gradients from differentiable steps, for derivatives of any higher order.

    The statistics are computed once more from x, so that the graph knows how they depend on it.
    Three collectives.
    """
    axes = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    grad, x_acc = grad.to(number.dtype), x.to(number.dtype)
    mean = SumOverRanks.apply(x_acc.sum(axes), group) / number
    centred = x_acc - mean.view(shape)
    var = SumOverRanks.apply(centred.square().sum(axes), group) / number
    invstd = (var + eps).rsqrt()
    normalised = centred * invstd.view(shape)
    sums = torch.cat([grad.sum(axes), (grad * normalised).sum(axes)])
    dbias, dweight = sums.chunk(2)
    mean_grad, slope = (SumOverRanks.apply(sums, group) / number).chunk(2)
    scale = invstd if weight is None else invstd * weight.to(number.dtype)
    dx = grad - mean_grad.view(shape) - normalised * slope.view(shape)
    return (dx * scale.view(shape)).to(x.dtype), dweight, dbias


def _recomputing() -> bool:
    """Whether this forward repeats an earlier one for activation checkpointing.

    Both kinds of checkpointing run it from inside a backward pass. A first forward there, which
    only a hook can make, counts as a repetition too: it doesn't move the running statistics. In a
    compiled graph the mutation of a buffer is not among the things that are recomputed.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def _warn_of_training_mode() -> None:
    """Warn, unless a function that may runs this forward."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_qualname in WITHOUT_GRADIENTS:
            return
        frame = frame.f_back
    _warn_once()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "SyncBatchNorm runs in training mode with gradients off: to evaluate call model.eval() "
        "first, or the samples are normalised by each other, move the running statistics, and "
        "processes with different numbers of batches wait for each other for ever.",
        stacklevel=2,
    )


def _refuse_forward_ad(*tensors: Tensor | None) -> None:
    if torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", -1) < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "SyncBatchNorm has no forward-mode derivative: the collectives would drop the "
                "tangents; use reverse mode (torch.autograd.grad, twice for second derivatives)."
            )
