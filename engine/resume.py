"""Which folder a run writes, and which checkpoint it continues."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from engine.checkpoint import (
    Checkpoint,
    complete_checkpoints,
    load_checkpoint,
    newest_good_checkpoint,
    recover,
    save_checkpoint,
)
from engine.collectives import from_main_process
from engine.options import TrainingOptions
from engine.run_folder import RunFolder, continues, default_path, differing_options
from errors import UserError


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

    def save(self, folder: Path, options: TrainingOptions, identity: dict[str, Any]) -> None:
        """Write a checkpoint below ``folder`` and prune the older ones."""
        optimizer = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }
        state = asdict(self.progress) | {
            "samples": self.progress.step * identity["global_batch_size"],
            "options": asdict(options),
            "identity": identity,
        }
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
        for name in asdict(self.progress):
            setattr(self.progress, name, checkpoint.state[name])


def claim_folder(
    accelerator: Accelerator, task_name: str, options: TrainingOptions
) -> tuple[RunFolder | None, Path]:
    """Take the run's folder (main process) and agree on its path (one collective).

    Raises:
        UserError: see RunFolder; or ``--resume auto`` without ``--output_dir``.
    """
    if options.resume == "auto" and options.output_dir is None:
        raise UserError("--resume auto continues the run in --output_dir; give that folder.")
    folder = None
    if accelerator.is_main_process:
        path = Path(options.output_dir or default_path(task_name, options))
        if options.eval_only and options.resume == "auto" and not (path / "checkpoints").is_dir():
            raise UserError(f"There is no run in {path} to evaluate; check --output_dir.")
        folder = RunFolder(path, resume=continues(options))
        recover(path / "checkpoints")
    return folder, from_main_process(folder.path if folder else None)


def find_checkpoint(accelerator: Accelerator, options: TrainingOptions, path: Path) -> Path | None:
    """The checkpoint that ``--resume`` asks for, the same on every process (one collective)."""
    if options.resume == "never":
        return None
    if options.resume != "auto":
        return _given_checkpoint(Path(options.resume))
    newest = None
    if accelerator.is_main_process:
        newest, skipped = newest_good_checkpoint(path / "checkpoints")
        for sentence in skipped:
            print(sentence, flush=True)
        if newest is None and skipped:
            raise UserError(
                f"None of the checkpoints in {path / 'checkpoints'} can be used; remove that "
                "folder and metrics.jsonl to start over, or give another --output_dir."
            )
        if newest is None and options.eval_only:
            raise UserError(f"There is no checkpoint in {path} to evaluate; check --output_dir.")
    return from_main_process(newest)


def _given_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"There is no checkpoint folder {path}; check --resume.")
    inside = complete_checkpoints(path / "checkpoints") or complete_checkpoints(path)
    if inside:
        raise UserError(
            f"{path} is no checkpoint but holds some; give one, --resume {inside[-1]}, or continue "
            "the run with --resume auto and its --output_dir."
        )
    return path


def read_checkpoint(path: Path, options: TrainingOptions, identity: dict[str, Any]) -> Checkpoint:
    """Read the checkpoint that a run continues.

    Raises:
        UserError: it is damaged, or belongs to another training; the message names what differs.
    """
    checkpoint = load_checkpoint(path)
    stored = checkpoint.state
    missing = {"options", "identity", *asdict(Progress())} - set(stored)
    if missing:
        raise UserError(
            f"{path} holds no {', '.join(sorted(missing))}: it is not a checkpoint of this version "
            "of the scripts; give another --resume."
        )
    differs = differing_options(stored["options"], options)
    differs += [
        f"{key} {stored['identity'].get(key)} -> {now}"
        for key, now in identity.items()
        if stored["identity"].get(key) != now
    ]
    if differs:
        raise UserError(
            f"{path} belongs to a training with other options ({'; '.join(differs)}); use the same "
            "ones, or give another --output_dir."
        )
    return checkpoint
