"""Losses of steps, summed over micro-batches and processes, kept on the device until read."""

import math
import signal
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.collectives import sum_over_processes
from engine.task import Losses

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class StepRecord:
    """A finished optimizer step, read from the device.

    Attributes:
        step: its number, from 1.
        parts: the parts of the global loss.
        counts: the global counts.
        grad_norm: of the whole gradient; None where it was not measured.
        signum: the signal for which a process was asked to stop, or 0.
    """

    step: int
    parts: dict[str, float]
    counts: dict[str, float]
    grad_norm: float | None
    signum: int

    @property
    def is_finite(self) -> bool:
        """Whether every part of the loss is finite."""
        return all(math.isfinite(value) for value in self.parts.values())

    @property
    def has_finite_gradient(self) -> bool:
        """Whether the gradient is finite, as far as it was measured."""
        return self.grad_norm is None or math.isfinite(self.grad_norm)


class GlobalSums(NamedTuple):
    """The sums of one step over its micro-batches and all processes, on the device.

    Attributes:
        parts: the parts of the global loss, float64 scalars by name.
        counts: the global counts, float64 scalars by name.
        signals: for each of SIGNALS, how many processes were asked to stop by it.
        gradient_factor: by which the gradients are still to be multiplied, or None.
    """

    parts: dict[str, Tensor]
    counts: dict[str, Tensor]
    signals: dict[int, Tensor]
    gradient_factor: Tensor | None


class StepSums:
    """Parts of the loss and counts of one step, over the micro-batches of this process."""

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self._divide_by: str | None = None

    def add(self, losses: Losses) -> None:
        """Add a micro-batch."""
        for sums, values in ((self.parts, losses.parts), (self.counts, losses.counts)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
        self._divide_by = losses.divide_by

    def over_processes(self, signum: int) -> GlobalSums:
        """Add up the sums of all processes, and divide by the global count that the loss names.

        The gradient is linear in that divisor, so the division may come after the backward pass.
        One collective, no device sync.

        Args:
            signum: the signal for which this process was asked to stop, or 0.
        """
        sums = [*self.parts.values(), *self.counts.values()]
        # new_full, unlike new_tensor, doesn't wait for the device.
        flags = [sums[0].new_full((), float(signum == wanted)) for wanted in SIGNALS]
        values = iter(sum_over_processes(torch.stack([*sums, *flags])).unbind())
        parts, counts, signals = (
            {name: next(values) for name in names} for names in (self.parts, self.counts, SIGNALS)
        )
        factor = None
        if self._divide_by:
            factor = 1 / counts[self._divide_by].clamp(min=1)
            parts = {name: part * factor for name, part in parts.items()}
        return GlobalSums(parts, counts, signals, factor)


class LossBuffer:
    """The losses of the steps since the last reading."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, GlobalSums, Tensor | None]] = []

    def add(self, step: int, sums: GlobalSums, grad_norm: Tensor | None) -> None:
        """Add a finished step."""
        self._steps.append((step, sums, grad_norm))

    def read(self) -> list[StepRecord]:
        """The steps since the last reading, at least one (a device sync)."""
        tensors = [
            tensor.double()
            for _, sums, grad_norm in self._steps
            for tensor in (
                *sums.parts.values(),
                *sums.counts.values(),
                *sums.signals.values(),
                *([] if grad_norm is None else [grad_norm]),
            )
        ]
        values = iter(torch.stack(tensors).tolist())
        records = [
            StepRecord(
                step=step,
                parts={name: next(values) for name in sums.parts},
                counts={name: next(values) for name in sums.counts},
                signum=_first_signal({signum: next(values) for signum in sums.signals}),
                grad_norm=None if grad_norm is None else next(values),
            )
            for step, sums, grad_norm in self._steps
        ]
        self._steps.clear()
        return records


def _first_signal(processes: dict[int, float]) -> int:
    return next((signum for signum, count in processes.items() if count), 0)
