"""What a training script tells the engine about its task."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

Batch = dict[str, Any]


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

    def losses(
        self, model: nn.Module, batch: Batch, normalizers: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """This batch's share of each part of the global loss.

        The parts are sums over the batch divided by the global ``normalizers``, so that adding
        the shares of all micro-batches and processes gives the global mean; the loss that is
        minimised is the sum of the parts.
        """

    def evaluate(self, model: nn.Module, batches: Any) -> torch.Tensor:
        """Sums over this process's share of the validation data, a float64 vector.

        Must not use collectives: the shares of the processes have different lengths. The engine
        adds the vectors of all processes.
        """

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """Metrics from the sums over the whole validation data; absent ones are left out."""

    def pictures(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Pictures of predictions by name, uint8 (3, H, W); called on the main process only."""
