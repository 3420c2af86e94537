"""All that changes while training, and its way into a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import Checkpoint
from engine.optim import WeightAverage
from engine.options import CommonOptions
from errors import UserError
from norm import average_running_stats


@dataclass
class Progress:
    """What a run has done so far; all of it is in its checkpoints.

    Attributes:
        step: optimizer steps done.
        evaluated_step: the step of the newest evaluation.
        metrics: that evaluation's metrics.
        best: the best evaluation's metrics and its "step".
        seconds: from start to end of all parts of the run.
        training_seconds: those without evaluating and saving.
        waiting_seconds: those in which the main process waited for data.
        data_changed: the steps after which the run went on with other data.
    """

    step: int = 0
    evaluated_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    data_changed: list[int] = field(default_factory=list)

    def to_checkpoint(self, options: CommonOptions, identity: dict[str, Any]) -> dict[str, Any]:
        """The content of a checkpoint's state.json."""
        return asdict(self) | {
            "samples": self.step * identity["global_batch_size"],
            "options": asdict(options),
            "identity": identity,
        }

    def restore(self, stored: dict[str, Any]) -> None:
        """Take over what ``to_checkpoint`` made.

        Raises:
            ValueError: a value is of another type.
        """
        for name, default in asdict(self).items():
            value = stored.get(name, default)
            right = (
                isinstance(value, int | float)
                if type(default) is float
                else isinstance(value, type(default))
            )
            numbers = value.values() if isinstance(value, dict) else []
            if not right or not all(isinstance(number, int | float) for number in numbers):
                raise ValueError(f"its {name} is {value!r}")
            setattr(self, name, value)


@dataclass
class State:
    """All that changes while training.

    Attributes:
        model: the unwrapped model.
        ema: its averaged copy, or None.
        optimizer: the unwrapped optimizer.
        scaler: the fp16 loss scaler, or None.
        progress: counters and metrics.
    """

    model: nn.Module
    ema: WeightAverage | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    progress: Progress

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated, and saved as the best: the average if there is one."""
        return self.ema.module if self.ema else self.model

    def evaluated_weights(self) -> dict[str, Tensor] | None:
        """The state dict of ``evaluated_model``, on the main process at least."""
        return self.evaluated_model.state_dict()

    def snapshot(self, options: CommonOptions, identity: dict[str, Any]) -> Checkpoint | None:
        """A copy of all in host memory, on the main process at least; else None.

        Plain BatchNorm's running statistics are averaged over the processes first (a collective).
        The copy waits for the device.
        """
        average_running_stats(self.model)
        if self.ema:
            average_running_stats(self.ema.module)
        return self._copy(options, identity)

    def _copy(self, options: CommonOptions, identity: dict[str, Any]) -> Checkpoint:
        optimizer = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }
        ema = self.ema.module.state_dict() if self.ema else None
        model, ema, optimizer = on_host([self.model.state_dict(), ema, optimizer])
        return Checkpoint(model, ema, optimizer, self.progress.to_checkpoint(options, identity))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it doesn't fit the model.
        """
        try:
            self._restore(checkpoint)
            self.progress.restore(checkpoint.state)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"The checkpoint of step {checkpoint.state['step']} doesn't fit this training "
                f"({first_line}); give another one by --resume, or another --output_dir."
            ) from None

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.model)
        if self.ema:
            if checkpoint.ema is None:
                raise ValueError("it holds no averaged weights")
            self.ema.module.load_state_dict(checkpoint.ema)
        self.optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
        refuse_other_shapes(self.optimizer)
        if self.scaler and checkpoint.optimizer["scaler"]:
            self.scaler.load_state_dict(checkpoint.optimizer["scaler"])


def on_host(value: Any) -> Any:
    """A copy in host memory of a tensor, or of all tensors in dictionaries and lists.

    No copy shares memory with another tensor. From a GPU the copies go to pinned memory, all at
    once, and the device is waited for at the end.
    """
    copies = _copies(value)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copies


def _copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        pinned = torch.empty_like(value, device="cpu", pin_memory=value.device.type == "cuda")
        return pinned.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _copies(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copies, value))
    return value


def refuse_other_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a state that isn't of the shape of its parameter, which optimizers accept.

    Raises:
        ValueError: names the shapes.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's {name} is of shape {tuple(value.shape)} for a parameter of "
                    f"shape {tuple(parameter.shape)}"
                )
