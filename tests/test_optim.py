"""Optimizer, schedules and averaged weights."""

import math

import pytest
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from engine.optim import create_ema, create_optimizer, lr_schedule, parameter_groups
from tasks.segmentation.options import SegmentationOptions as Options


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_norm_layers_and_biases_are_not_decayed(kind: str) -> None:
    model = network()
    decay = {
        id(parameter): group["weight_decay"]
        for group in create_optimizer(model, Options(optimizer=kind, weight_decay=0.5)).param_groups
        for parameter in group["params"]
    }
    assert len(decay) == 6
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim > 1 else 0.0), name
    options = Options(optimizer=kind, weight_decay=0.5, decay_norm_and_bias=True)
    (group,) = create_optimizer(model, options).param_groups
    assert group["weight_decay"] == 0.5 and len(group["params"]) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_is_sgd_with_nesterov_momentum(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
    model = nn.ParameterList([weight])
    options = Options(optimizer="sgd", lr=0.1, weight_decay=0.0)
    optimizer = create_optimizer(model, options)
    value, momentum = weight.detach().clone(), torch.zeros(2, dtype=dtype)
    for _ in range(3):
        weight.grad = weight.detach().clone()
        optimizer.step()
        momentum = 0.9 * momentum + value
        value = value - 0.1 * (value + 0.9 * momentum)
    assert torch.allclose(weight, value, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant", "one_cycle"])
def test_schedules(schedule: str) -> None:
    lr = lr_schedule(Options(schedule=schedule, warmup_steps=10), 110, 2.0)
    values = [lr(step) for step in range(110)]
    assert all(0 <= value <= 2.0 for value in values)
    assert values[:10] == pytest.approx([2 * (s + 1) / 11 for s in range(10)])
    after = values[10:]
    if schedule == "constant":
        assert after == [2.0] * 100
    elif schedule == "one_cycle":
        assert after[0] == pytest.approx(2 / 25) and after[30] == pytest.approx(2.0)
        assert after[-1] < 0.01
    else:
        assert after[0] == 2.0 and sorted(after, reverse=True) == after
        middle = math.cos(math.pi / 4) ** 2 if schedule == "cosine" else 0.5**0.9
        assert after[50] == pytest.approx(2 * middle)


def test_groups_and_averages_are_timms() -> None:
    model = network()
    model.register_parameter("free", nn.Parameter(torch.ones(2, 2)))
    model[2].weight.requires_grad_(False)
    mine, theirs = parameter_groups(model, 0.5), param_groups_weight_decay(model, 0.5)
    for group, other in zip(mine, theirs, strict=True):
        assert group["weight_decay"] == other["weight_decay"]
        assert [id(p) for p in group["params"]] == [id(p) for p in other["params"]]
    average, other = create_ema(model, 0.9), ModelEmaV3(model, 0.9, use_warmup=True)
    for step in range(1, 60):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model, step)
        other.update(model, step)
    for value, expected in zip(
        *(a.module.state_dict().values() for a in (average, other)), strict=True
    ):
        assert torch.equal(value, expected)


def test_the_average_follows_early_and_smooths_late() -> None:
    model = network()
    assert create_ema(model, 0.0) is None
    ema = create_ema(model, 0.9)
    expected = [p.detach().clone() for p in model.parameters()]
    for step in range(1, 40):
        if step == 20:  # as DDP moves them
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
            model[1].running_mean.fill_(step)
        ema.update(model, step)
        keep = min(0.9, 1 - step ** (-2 / 3)) if step > 1 else 0.0
        expected = [
            keep * e + (1 - keep) * p for e, p in zip(expected, model.parameters(), strict=True)
        ]
    for mine, wanted in zip(ema.module.parameters(), expected, strict=True):
        assert torch.allclose(mine, wanted, atol=1e-5)
    assert 20 < ema.module[1].running_mean[0] < 39  # buffers are averaged too
