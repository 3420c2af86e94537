"""The loss of classifiers and the counts that their scores are made of, for pictures and videos."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

TOP = 5


def cross_entropy_sum(logits: Tensor, batch: dict[str, Tensor], label_smoothing: float) -> Tensor:
    """Cross entropy summed over the samples.

    Args:
        logits: (B, K).
        batch: "label" (B,); for mixed samples also "label2" (B,) and "mix" (B,), the share of
            "label" (arXiv:1710.09412, equation 1).
        label_smoothing: share of the target that is spread over all classes (arXiv:1512.00567,
            section 7).
    """
    options = {"label_smoothing": label_smoothing, "reduction": "none"}
    losses = F.cross_entropy(logits, batch["label"], **options)
    if "mix" in batch:
        others = F.cross_entropy(logits, batch["label2"], **options)
        losses = torch.lerp(others, losses, batch["mix"].to(losses))
    return losses.sum()


class ScoreCounts:
    """Counts over predictions, on the device; they add up over batches and processes.

    Args:
        num_classes: K.
        device: where the predictions are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
        self.rest = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count predictions (N, K), whose rows sum to one, and labels (N,)."""
        self.confusion += multiclass_confusion_matrix(
            probabilities.argmax(1), labels, self.num_classes, validate_args=False
        )
        top = probabilities.topk(min(TOP, self.num_classes)).indices
        # Of a zero the logarithm is infinite, which one sample shouldn't make of a mean.
        of_label = probabilities.gather(1, labels[:, None]).double().clamp(min=1e-38)
        self.rest += torch.stack([(top == labels[:, None]).sum(), -of_label.log().sum()])

    def vector(self) -> Tensor:
        """All counts as float64 (K * K + 2,)."""
        return torch.cat([self.confusion.flatten(), self.rest])


def confusion_of(counts: Tensor) -> Tensor:
    """Truth (rows) against prediction of a vector of ScoreCounts: (K, K)."""
    classes = round((len(counts) - 2) ** 0.5)
    return counts[:-2].view(classes, classes)


def scores(counts: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Metrics of a vector of ScoreCounts.

    Returns:
        top1, top5 (of more than five classes), mean_recall over the classes that occur, loss: the
        mean of the negative logarithm of the true class's probability.
    """
    confusion, (top, loss) = confusion_of(counts), counts[-2:]
    per_class, hits = confusion.sum(1), confusion.diagonal()
    total = per_class.sum().clamp(min=1)
    occurs = per_class > 0
    result = {"top1": (hits.sum() / total).item()}
    if len(classes) > TOP:
        result["top5"] = (top / total).item()
    if occurs.any():
        result["mean_recall"] = (hits[occurs] / per_class[occurs]).mean().item()
    return result | {"loss": (loss / total).item()}
