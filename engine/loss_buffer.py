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
        values: float64, the parts of the global loss, then the global counts, then for each of
            SIGNALS how many processes were asked to stop by it.
        parts: names of the parts.
        counts: names of the counts.
        gradient_factor: by which the gradients are still to be multiplied, or None.
    """

    values: Tensor
    parts: tuple[str, ...]
    counts: tuple[str, ...]
    gradient_factor: Tensor | None


class StepSums:
    """Parts of the loss and counts of one step, over the micro-batches of this process."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._names: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        self._divide_by: str | None = None

    def add(self, losses: Losses) -> None:
        """Add a micro-batch."""
        values = [*losses.parts.values(), *losses.counts.values()]
        row = torch.stack([value.detach().double() for value in values])
        self._sums = row if self._sums is None else self._sums + row
        self._names, self._divide_by = (tuple(losses.parts), tuple(losses.counts)), losses.divide_by

    def over_processes(self, signals: Tensor) -> GlobalSums:
        """Add up the sums of all processes, and divide by the global count that the loss names.

        The gradient is linear in that divisor, so the division may come after the backward pass.
        One collective, no device sync.

        Args:
            signals: from ``signal_flags``, on the losses' device.
        """
        parts, counts = self._names
        values = sum_over_processes(torch.cat([self._sums, signals]))
        factor = None
        if self._divide_by:
            place = len(parts) + counts.index(self._divide_by)
            factor = 1 / values[place].clamp(min=1)
            values[: len(parts)] *= factor
        return GlobalSums(values, parts, counts, factor)


def signal_flags(signum: int, device: torch.device) -> Tensor:
    """float64 (len(SIGNALS),) with 1 for the signal ``signum``, which may be 0 for none."""
    flags = torch.zeros(len(SIGNALS), dtype=torch.float64, device=device)
    if signum in SIGNALS:
        flags[SIGNALS.index(signum)] = 1
    return flags


class LossBuffer:
    """The losses of the steps since the last reading."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, GlobalSums, Tensor | None]] = []

    def add(self, step: int, sums: GlobalSums, grad_norm: Tensor | None) -> None:
        """Add a finished step."""
        self._steps.append((step, sums, grad_norm))

    def read(self) -> list[StepRecord]:
        """The steps since the last reading, at least one (a device sync)."""
        rows = [
            sums.values if grad_norm is None else torch.cat([sums.values, grad_norm.double()[None]])
            for _, sums, grad_norm in self._steps
        ]
        values = iter(torch.cat(rows).tolist())
        records = []
        for step, sums, grad_norm in self._steps:
            parts, counts, signals = (
                {name: next(values) for name in names}
                for names in (sums.parts, sums.counts, SIGNALS)
            )
            norm = None if grad_norm is None else next(values)
            records.append(StepRecord(step, parts, counts, norm, _first_signal(signals)))
        self._steps.clear()
        return records


def _first_signal(processes: dict[int, float]) -> int:
    return next((signum for signum, count in processes.items() if count), 0)
