"""The metrics of classifiers, of images and of videos."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TOP = 5


class Mistake(NamedTuple):
    """A misclassified image; the surest mistakes sort last.

    Attributes:
        probability: of the prediction, from 0 to 1.
        prediction: the predicted label.
        truth: the label.
        index: of the sample in the data set.
    """

    probability: float
    prediction: int
    truth: int
    index: int


class ClassCounts:
    """Counts over predictions, on the device, from which ``class_metrics`` computes the metrics.

    Args:
        num_classes: K.
        device: where the predictions are.

    Attributes:
        sums: "confusion" (K, K), truth (rows) against prediction; "top5", how often the truth is
            among the five most probable classes; "loss", the negative logarithm of the true
            class's probability, summed. All are float64 and add up over batches and processes.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.sums = {
            "confusion": zero.expand(num_classes, num_classes).clone(),
            "top5": zero.clone(),
            "loss": zero.clone(),
        }

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count predictions.

        Args:
            probabilities: (N, K), each row of sum 1.
            labels: int64 (N,).
        """
        self.add_hits(probabilities, labels)
        # The logarithm of 0 is infinite, and one such sample would make the mean infinite.
        of_label = probabilities.gather(1, labels[:, None]).double().clamp(min=1e-38)
        self.sums["loss"] -= of_label.log().sum()

    def add_hits(self, scores: Tensor, labels: Tensor) -> None:
        """Count predictions, without their loss.

        Args:
            scores: (N, K), probabilities or logits.
            labels: int64 (N,).
        """
        cells = labels * self.num_classes + scores.argmax(1)
        # As many additions as there are samples; a matrix per batch would cost K² of them.
        counts = self.sums["confusion"].view(-1)
        counts.index_add_(0, cells, counts.new_ones(()).expand(len(cells)))
        top = scores.topk(min(TOP, self.num_classes)).indices
        self.sums["top5"] += (top == labels[:, None]).sum()


def class_metrics(sums: dict[str, Tensor], classes: Sequence[str]) -> dict[str, float]:
    """The metrics of ``ClassCounts.sums``.

    Returns:
        top1, top5 (with more than five classes), mean_recall over the classes that occur, and
        loss: the mean negative logarithm of the true class's probability.
    """
    confusion = sums["confusion"]
    per_class, hits = confusion.sum(1), confusion.diagonal()
    total = per_class.sum().clamp(min=1)
    occurs = per_class > 0
    metrics = {"top1": (hits.sum() / total).item()}
    if len(classes) > TOP:
        metrics["top5"] = (sums["top5"] / total).item()
    if occurs.any():
        metrics["mean_recall"] = (hits[occurs] / per_class[occurs]).mean().item()
    return metrics | {"loss": (sums["loss"] / total).item()}
