"""What a training script tells the engine about its task."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

Batch = dict[str, Any]


class Losses(NamedTuple):
    """One batch's share of the global loss, which is the sum of its parts.

    Attributes:
        parts: scalars that add up, over all micro-batches and processes, to the parts of the loss.
        counts: what was counted on the way; logged per sample, and no part of the loss.
        divide_by: the count by whose global sum the parts, and with them the gradient, are still
            to be divided: one that is known only after the forward pass.
    """

    parts: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor] = {}  # noqa: RUF012 (never changed)
    divide_by: str | None = None


class Tally(NamedTuple):
    """What a process has found in its share of the validation data.

    Attributes:
        sums: a float64 vector; the engine adds those of all processes.
        records: what no sum can hold, such as ranked detections, or None for a task without; the
            engine joins the lists of all processes.
    """

    sums: torch.Tensor
    records: list | None = None


class Task(Protocol):
    """A task: its data, its loss and its score. The engine knows nothing else about it.

    Attributes:
        name: "segmentation", "detection", ...
        train_data: maps ``(epoch, index)`` to a sample; ``train_data.name(index)`` names its file.
        val_data: the same for evaluation.
        collate_train: makes a batch of samples; every batch has the same shape.
        collate_eval: makes a batch of evaluation samples.
        best_metric: the metric, higher is better, by which the best weights are chosen.
        description: values for summary.json and the check on resuming, e.g. the class names.
    """

    name: str
    train_data: Dataset
    val_data: Dataset
    collate_train: Callable[[list], Batch]
    collate_eval: Callable[[list], Any]
    best_metric: str
    description: dict[str, Any]

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch of bytes to the device and normalise it there."""

    def normalizers(self, batch: Batch) -> torch.Tensor:
        """What this batch adds to the denominators of the loss, a float vector on the device.

        The engine sums it over micro-batches and processes before any loss is computed.
        """

    def losses(self, model: nn.Module, batch: Batch, normalizers: torch.Tensor) -> Losses:
        """This batch's share of each part of the global loss.

        The parts are sums over the batch divided by the global ``normalizers``, so that adding
        the shares of all micro-batches and processes gives the global mean.
        """

    def evaluate(self, model: nn.Module, batches: Any) -> Tally:
        """Counts and predictions over this process's share of the validation data.

        Must not use collectives: the shares of the processes have different lengths.
        """

    def metrics(self, sums: torch.Tensor, records: list) -> dict[str, float]:
        """Metrics over the whole validation data; absent ones are left out. Main process only."""

    def pictures(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Pictures of predictions by name, uint8 (3, H, W); called on the main process only."""
