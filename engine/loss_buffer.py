"""Losses of steps, summed over micro-batches and processes, kept on the device until read."""

import math
import signal
from dataclasses import dataclass

import torch

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
        """Whether every part of the loss is a number."""
        return all(math.isfinite(value) for value in self.parts.values())

    @property
    def has_finite_gradient(self) -> bool:
        """Whether the gradient is made of numbers, as far as it was measured."""
        return self.grad_norm is None or math.isfinite(self.grad_norm)


class StepSums:
    """Parts of the loss and counts of one step, over its micro-batches."""

    def __init__(self) -> None:
        self.parts: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}
        self._divide_by: str | None = None

    def add(self, losses: Losses) -> None:
        """Add a micro-batch."""
        for sums, values in ((self.parts, losses.parts), (self.counts, losses.counts)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
        self._divide_by = losses.divide_by

    def over_processes(self, model: torch.nn.Module, signum: int) -> torch.Tensor:
        """Add up the processes' sums, and divide by the global count that the loss names.

        The gradients of ``model`` are divided too: they are linear in that divisor, so this may
        come after the backward pass. One collective, no device sync.

        Args:
            model: after the last micro-batch's backward pass.
            signum: the signal for which this process was asked to stop, or 0.

        Returns:
            float64: the parts, the counts, and for each of SIGNALS how many processes received it.
        """
        sums = [*self.parts.values(), *self.counts.values()]
        # new_full, unlike new_tensor, doesn't wait for the device.
        flags = [sums[0].new_full((), float(signum == wanted)) for wanted in SIGNALS]
        values = sum_over_processes(torch.stack([*sums, *flags]))
        if self._divide_by:
            parts = len(self.parts)
            factor = 1 / values[parts + list(self.counts).index(self._divide_by)].clamp(min=1)
            values[:parts] *= factor
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        return values


class LossBuffer:
    """The losses of the steps since the last reading."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, bool, torch.Tensor]] = []

    def add(
        self, step: int, sums: StepSums, values: torch.Tensor, grad_norm: torch.Tensor | None
    ) -> None:
        """Add a step, with what ``sums.over_processes`` returned."""
        self._names = list(sums.parts), list(sums.counts)
        measured = grad_norm is not None
        norm = grad_norm.to(values) if measured else values.new_zeros(())
        self._rows.append((step, measured, torch.cat([values, norm.view(1)])))

    def read(self) -> list[StepRecord]:
        """The steps since the last reading, at least one (a device sync)."""
        table = torch.stack([values for *_, values in self._rows]).tolist()
        records = [
            self._record(step, measured, row)
            for (step, measured, _), row in zip(self._rows, table, strict=True)
        ]
        self._rows.clear()
        return records

    def _record(self, step: int, measured: bool, row: list[float]) -> StepRecord:
        parts, counts = self._names
        *values, sigterm, sigint, grad_norm = row
        return StepRecord(
            step=step,
            parts=dict(zip(parts, values[: len(parts)], strict=True)),
            counts=dict(zip(counts, values[len(parts) :], strict=True)),
            grad_norm=grad_norm if measured else None,
            signum=next((s for s, n in zip(SIGNALS, (sigterm, sigint), strict=True) if n), 0),
        )
