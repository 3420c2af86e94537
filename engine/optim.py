"""The optimizer, its learning rate as a function of the step, and the averaged weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.options import TrainingOptions


def create_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW, fused, without decay on norm layers and biases."""
    if options.decay_norm_and_bias or not options.weight_decay:
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": parameters, "weight_decay": options.weight_decay}]
    else:
        groups = parameter_groups(model, options.weight_decay)
    if options.optimizer == "sgd":
        momentum = {"momentum": options.momentum, "nesterov": options.momentum > 0}
        return torch.optim.SGD(groups, lr=options.lr, fused=True, **momentum)
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: norm layers and biases without decay, then all the rest."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_plain = parameter.ndim <= 1 or name.endswith(".bias")
            (plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def lr_schedule(options: TrainingOptions, steps: int, peak: float) -> Callable[[int], float]:
    """The learning rate of optimizer step s, 0 <= s < steps.

    A pure function of the step: nothing to save, nothing to step, and nothing that depends on the
    number of processes. The warm-up is linear and comes out of ``steps``.

    - poly: ``(1 - t)^0.9`` (Liu et al., ParseNet, 2015)
    - cosine: ``(1 + cos(pi t)) / 2`` (Loshchilov & Hutter, SGDR, 2017)
    - one_cycle: cosine from peak/25 up over the first 30 %, then down to 0 (Smith, 2018)
    - constant
    """
    warmup = min(options.warmup_steps, steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        t = (step - warmup) / max(1, steps - warmup)
        if options.schedule == "poly":
            return (1 - t) ** 0.9
        if options.schedule == "cosine":
            return (1 + math.cos(math.pi * t)) / 2
        if options.schedule == "one_cycle":
            if t < 0.3:
                return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * t / 0.3)) / 2
            return (1 + math.cos(math.pi * (t - 0.3) / 0.7)) / 2
        return 1.0

    return lambda step: peak * factor(step)


class WeightAverage:
    """An exponential moving average of a model's weights and running statistics.

    After update n it keeps ``min(decay, 1 - n^(-2/3))`` of itself. So it follows the weights faster
    early on, and isn't dominated by the random start. Given the step it has no state besides the
    weights. The same numbers as timm's ModelEmaV3 with ``use_warmup``, which looks the tensors up
    at every update: that takes as long as the update itself. Here they are looked up at the first
    one, and again if the model's memory is another by then.

    Args:
        model: on its device.
        decay: in (0, 1).

    Attributes:
        module: the model with the averaged weights, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.decay = copy.deepcopy(model).eval(), decay
        self._first: int | None = None  # address of the model's first parameter
        self._floats: tuple[list[Tensor], list[Tensor]] = [], []  # averages, and the model's values
        self._counters: tuple[list[Tensor], list[Tensor]] = [], []

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after ``step`` optimizer steps, and its counters as is."""
        first = next(model.parameters()).data_ptr()
        if first != self._first:  # DDP, for one, moves parameters
            self._look_up(model)
            self._first = first
        keep = min(self.decay, 1 - step ** -(2 / 3))
        torch._foreach_lerp_(*self._floats, weight=1 - keep)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)

    def _look_up(self, model: nn.Module) -> None:
        self._floats, self._counters = ([], []), ([], [])
        states = self.module.state_dict().values(), model.state_dict().values()
        for average, value in zip(*states, strict=True):
            averages, values = self._floats if average.is_floating_point() else self._counters
            averages.append(average)
            values.append(value)


def create_ema(model: nn.Module, decay: float) -> WeightAverage | None:
    """The average of the weights; None for decay 0."""
    return WeightAverage(model, decay) if decay else None


def all_finite(model: nn.Module) -> bool:
    """Whether all weights and buffers are finite (a device sync)."""
    values = [v for v in model.state_dict().values() if v.is_floating_point() and v.numel()]
    norms = [norm.double() for norm in torch._foreach_norm(values, math.inf)]
    return not norms or bool(torch.stack(norms).isfinite().all())
