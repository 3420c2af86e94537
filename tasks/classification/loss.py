"""The loss of classifiers, of images and of videos."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_sum(logits: Tensor, batch: dict[str, Tensor], label_smoothing: float) -> Tensor:
    """Cross entropy summed over the samples.

    Args:
        logits: (B, K).
        batch: "label" (B,); for mixed samples also "label2" (B,) and "mix" (B,), the share of
            "label" (arXiv:1710.09412, equation 1).
        label_smoothing: share of the target that is spread over all classes (arXiv:1512.00567,
            section 7).

    Returns:
        A scalar.
    """
    options = {"label_smoothing": label_smoothing, "reduction": "none"}
    losses = F.cross_entropy(logits, batch["label"], **options)
    if "mix" in batch:
        others = F.cross_entropy(logits, batch["label2"], **options)
        losses = torch.lerp(others, losses, batch["mix"].to(losses))
    return losses.sum()
