"""The first step of a compiled run is compared with the eager one."""

import pytest
import torch
from torch import nn

from engine.loss_buffer import GlobalSums, StepSums, signal_flags
from engine.rehearsal import compare_with_eager
from engine.task import Losses
from errors import UserError


class Steps:
    """Stands for an OptimizerStep whose compiled passes scale losses and one layer's gradients."""

    def __init__(self, model: nn.Module, loss: float, gradient: float | None, random: bool) -> None:
        self.model, self.loss, self.gradient, self.random = model, loss, gradient, random
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def seed(self, step: int) -> None:
        self.step = step

    def gradients(self, micro_batches: list) -> GlobalSums:
        eager = (
            torch.compiler.is_compiling() or torch._dynamo.eval_frame._stance.stance != "default"
        )
        loss = self.model(micro_batches[0]).square().mean() * (1 + self.random * self.step)
        loss.backward()
        if not eager:
            loss = loss * self.loss
            weight = self.model[2].weight
            weight.grad = None if self.gradient is None else weight.grad * self.gradient
        sums = StepSums()
        sums.add(Losses({"all": loss}))
        return sums.over_processes(signal_flags(0, torch.device("cpu")))


@pytest.mark.parametrize(
    "loss, gradient, random, words",
    [
        (1.0, 1.0, False, None),
        (1.0, 1.01, False, None),  # rounding
        (1.0, 0.0, False, "the gradient of 2.weight has the norm 0 instead of"),
        (1.0, 2.0, False, "the gradient of 2.weight"),
        (1.2, 1.0, False, "the loss is"),
        (1.2, 2.0, True, None),  # draws otherwise
        (1.0, 0.0, True, "the gradient of 2.weight has the norm 0"),
        (1.0, None, False, "the gradient of 2.weight has the norm 0"),
        (1.0, float("nan"), True, "the gradient of 2.weight has the norm nan"),
    ],
)
def test_a_difference_names_the_parameter(loss, gradient, random, words) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = [torch.randn(16, 4)]
    if words is None:
        compare_with_eager(Steps(model, loss, gradient, random), model, batch, 1, "single")
    else:
        with pytest.raises(UserError) as caught:
            compare_with_eager(Steps(model, loss, gradient, random), model, batch, 1, "single")
        assert words in str(caught.value) and torch.__version__ in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
