"""A run's checkpoints and best weights, written while the training goes on."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.about import About
from engine.background import BackgroundWriter
from engine.checkpoint import Checkpoint, save_checkpoint, save_state, weights_bytes
from engine.collectives import sum_over_processes
from engine.optim import all_finite
from engine.options import CommonOptions
from engine.run_folder import SAVED, write_atomically
from engine.state import State, on_host
from engine.stop import StopRequest
from errors import UserError


class Saver:
    """Copies what changes to host memory and has it written in the background.

    Args:
        path: the run's folder on the main process; None on the others, which write nothing.
        stop: told while something is being written.
        options: stored in the checkpoints; keep_checkpoints.
        identity: stored in the checkpoints.
        digests: of the run's data, stored in the checkpoints.

    Attributes:
        writer: what is being written.
        saved_step: the step of the newest checkpoint in this folder, the same on every process.
    """

    def __init__(
        self,
        path: Path | None,
        stop: StopRequest,
        options: CommonOptions,
        identity: dict[str, Any],
        digests: dict[str, str],
    ) -> None:
        self.path, self.options = path, options
        self.identity, self.digests = identity, digests
        self.writer, self.saved_step = BackgroundWriter(stop), -1

    def save(self, state: State, remedies: str) -> None:
        """Write a checkpoint, unless this step has one.

        A device sync and a few collectives; waits for what was being written before.

        Args:
            state: all that changes.
            remedies: what to try when the weights are not finite.

        Raises:
            UserError: the weights are not finite, or what was being written couldn't be.
        """
        step = state.progress.step
        if self.saved_step == step:
            return
        device = next(state.model.parameters()).device
        if sum_over_processes(torch.tensor(float(not all_finite(state.model)), device=device)):
            raise UserError(
                f"The weights are not finite after step {step} and were not saved; {remedies}."
            )
        self.writer.join()  # before the copy, so that there is only one
        snapshot = state.snapshot(self.options, self.identity)
        if self.path:
            snapshot.state["data"] = self.digests
            self.writer.start(partial(self._write, snapshot))
        self.saved_step = step

    def _write(self, snapshot: Checkpoint) -> None:
        save_checkpoint(self.path / "checkpoints", snapshot, self.options.keep_checkpoints)
        (self.path / SAVED).touch()

    def save_evaluation(self, state: State, best: dict[str, Tensor] | None, about: About) -> None:
        """Write an evaluation's outcome to its step's checkpoint, if there is one (main process).

        Args:
            state: its progress.
            best: the evaluated weights, if they are the best so far; else None.
            about: what these weights say about themselves.
        """
        progress = state.progress
        values = progress.to_checkpoint(self.options, self.identity) | {"data": self.digests}
        self.writer.join()  # before the copy, so that there is only one
        header, copy = about.to_header(), on_host(best)
        saved = self.saved_step == progress.step

        def write() -> None:
            if copy is not None:  # first: the checkpoint's best must not be newer than the file
                content = weights_bytes(copy, header)
                write_atomically(self.path / "best.safetensors", content)
            if saved:
                save_state(self.path / "checkpoints", values)

        self.writer.start(write)
