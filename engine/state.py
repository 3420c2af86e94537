"""All that changes while training, and its way into a checkpoint and back."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from engine.checkpoint import Checkpoint, save_checkpoint
from engine.options import CommonOptions
from norm import average_running_stats


@dataclass
class Progress:
    """What a run has done so far; all of it is in its checkpoints.

    Attributes:
        step: optimizer steps done.
        evaluated_step: the step of the newest evaluation.
        metrics: that evaluation's metrics.
        best: the best evaluation's metrics and its "step".
    """

    step: int = 0
    evaluated_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def to_checkpoint(self, options: CommonOptions, identity: dict[str, Any]) -> dict[str, Any]:
        """The content of a checkpoint's state.json."""
        return asdict(self) | {
            "samples": self.step * identity["global_batch_size"],
            "options": asdict(options),
            "identity": identity,
        }

    def restore(self, stored: dict[str, Any]) -> None:
        """Take over what ``to_checkpoint`` made."""
        for name in asdict(self):
            setattr(self, name, stored[name])


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
    ema: ModelEmaV3 | None
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

    def save(self, folder: Path | None, options: CommonOptions, identity: dict[str, Any]) -> None:
        """Write a checkpoint below ``folder`` (main process) and prune the older ones.

        Plain BatchNorm's running statistics are averaged over the processes first (a collective).
        """
        average_running_stats(self.model)
        if self.ema:
            average_running_stats(self.ema.module)
        if folder is None:
            return
        optimizer = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }
        state = self.progress.to_checkpoint(options, identity)
        ema = self.ema.module.state_dict() if self.ema else None
        checkpoint = Checkpoint(self.model.state_dict(), ema, optimizer, state)
        save_checkpoint(folder / "checkpoints", checkpoint, options.keep_checkpoints)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(checkpoint.model)
        if self.ema:
            self.ema.module.load_state_dict(checkpoint.ema)
        self.optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
        if self.scaler and checkpoint.optimizer["scaler"]:
            self.scaler.load_state_dict(checkpoint.optimizer["scaler"])
        self.progress.restore(checkpoint.state)
