"""What a task tells the engine, which knows nothing else about it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.utils.data import Dataset

from data.sources import evenly_spaced
from engine.inference import Inference

Batch = dict[str, Any]


class Losses(NamedTuple):
    """One batch's share of the global loss, which is the sum of its parts.

    Attributes:
        parts: scalars that add up, over all micro-batches and processes, to the parts of the loss.
        counts: what was counted on the way; logged per image, and not part of the loss.
        divide_by: the count by whose global sum the parts, and with them the gradient, are still
            to be divided: one that is known only after the forward pass.
    """

    parts: dict[str, Tensor]
    counts: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)
    divide_by: str | None = None


class Tally(NamedTuple):
    """What a process has found in its share of the validation data.

    Attributes:
        sums: float64 tensors of any shape, by name; the engine adds those of all processes.
        records: what no sum can hold, such as ranked detections, or None for a task without; the
            engine joins the lists of all processes.
    """

    sums: dict[str, Tensor]
    records: list | None = None


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        metrics: by name, e.g. "miou" or "iou/road"; without those that the data do not define.
        details: what the figures of this evaluation draw, such as a confusion matrix.
    """

    metrics: dict[str, float]
    details: Any = None


class Task(ABC):
    """A task: its data, its loss, its metrics and its figures.

    Attributes:
        name: "segmentation", "detection", ...
        best_metric: the metric, higher is better, by which the best weights are chosen.
        identity: values for the check on resuming, e.g. the class names.
        train_data: maps a ``data.stream.SampleKey`` to a sample; ``train_data.name(index)`` is the
            file of a sample.
        val_data: maps an index to a sample.
        inference: what leads from an input to a result, without the data.
        collate_train: makes a batch of training samples, all of one shape.
        collate_eval: makes a batch, or a list of batches, of evaluation samples.
    """

    name: ClassVar[str]
    best_metric: ClassVar[str]
    identity: dict[str, Any]
    train_data: Dataset
    val_data: Dataset
    inference: Inference
    collate_train: Callable[[list], Batch]
    collate_eval: Callable[[list], Any]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The network that the options name, in float32 on the CPU, with BatchNorm as built."""

    @abstractmethod
    def to_device(self, batch: Batch) -> Batch:
        """Move a batch of uint8 images to the device and scale their pixels there."""

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        """What this batch adds to denominators of the loss that only the batch can tell.

        The engine sums each over micro-batches and processes before any loss is computed. A task
        whose losses are means over images needs none: the global batch is known.

        Returns:
            float64 scalars on the device, by name.
        """
        return {}

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        """This batch's share of each part of the global loss.

        The parts are sums over the batch divided by a global denominator, so that adding the
        shares of all micro-batches and processes gives the global mean.

        Args:
            model: the network, perhaps wrapped in DistributedDataParallel.
            batch: from ``to_device``.
            denominators: the global sums of ``denominators``, and "images", the global batch: all
                float64 scalars on the device.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterator[Any]) -> Tally:
        """Counts and predictions over this process's share of the validation data.

        Must not use collectives: the shares of the processes have different lengths.

        Args:
            model: unwrapped and in evaluation mode.
            batches: from ``collate_eval``, on the CPU.
        """

    @abstractmethod
    def score(self, sums: dict[str, Tensor], records: list) -> Evaluation:
        """The metrics of the whole validation data; called on the main process only.

        Args:
            sums: those of ``evaluate``, added over all processes, on the CPU.
            records: those of ``evaluate``, of all processes.

        Raises:
            UserError: there is nothing to score.
        """

    @abstractmethod
    def figures(self, model: nn.Module, details: Any) -> dict[str, Tensor]:
        """Drawings of an evaluation by name, uint8 (3, H, W); called on the main process only.

        Args:
            model: unwrapped and in evaluation mode, without gradients.
            details: those of ``score``.
        """


def evenly_spaced_samples(dataset: Dataset, count: int) -> Iterator[Any]:
    """At most so many samples of an evaluation data set, the same ones at every call."""
    if count:
        for index in evenly_spaced(len(dataset), count).tolist():
            yield dataset[index]
