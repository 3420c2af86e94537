"""The metrics of segmentation."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.masks import IGNORE
from errors import UserError
from tasks.segmentation.loss import cross_entropy_sum

# Logits that are counted at once on the CPU: they and what is made of them fit into a core's cache.
BLOCK = 2**17
MASK_IDS = IGNORE + 1  # the ids that a mask can hold


def count_pixels(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compare a prediction with the truth, in one pass over the logits.

    Args:
        logits: (B, K, H, W).
        target: class ids (B, H, W), int64, 255 where ignored.
        weight: (K,) of the classes in the loss, or None for equal weights.

    Returns:
        confusion: int64 (K, K), the valid pixels, truth (rows) against prediction.
        cross_entropy: added over the valid pixels, each times the weight of its class; a float64
            scalar.
    """
    classes = logits.shape[1]
    loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    predictions = []
    for part, truth in _blocks(logits, target):
        loss += cross_entropy_sum(part, truth, weight)
        predictions.append(most_probable(part))
    return confusion(torch.cat(predictions, dim=1), target, classes), loss


def confusion(prediction: Tensor, target: Tensor, classes: int) -> Tensor:
    """int64 (K, K): the valid pixels, truth (rows) against prediction.

    Args:
        prediction: class ids of any shape and integer type.
        target: the same shape, 255 where ignored.
        classes: K.
    """
    cells = target.int().mul_(classes).add_(prediction).flatten()
    # A row for every id that a mask can hold, so that ignored pixels have one, which is cut off.
    counts = torch.bincount(cells, minlength=MASK_IDS * classes).view(MASK_IDS, classes)
    return counts[:classes]


def _blocks(logits: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the images at once; all of them on a GPU, which wants few launches."""
    images, classes, height, width = logits.shape
    rows = height if logits.is_cuda else max(1, BLOCK // (images * classes * width))
    for part, truth in zip(logits.split(rows, dim=2), target.split(rows, dim=1), strict=True):
        yield part.contiguous(), truth


def most_probable(logits: Tensor) -> Tensor:
    """The class of the largest logit of each pixel, of equal ones the first.

    On the CPU it takes a sixth of argmax's time, whose loop isn't vectorised.

    Args:
        logits: (B, K, H, W), K at most 255.

    Returns:
        Class ids (B, H, W); uint8 on the CPU.
    """
    if logits.is_cuda:
        return logits.argmax(1)
    ids = torch.arange(logits.shape[1], dtype=torch.uint8).view(1, -1, 1, 1)
    # 255 where another logit is larger, else the id: the smallest of them is the class.
    below = (logits < logits.amax(1, keepdim=True)).view(torch.uint8)
    return below.neg_().bitwise_or_(ids).amin(1)


def segmentation_metrics(confusion: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Intersection over union and pixel accuracy.

    Args:
        confusion: (K, K) pixels, truth (rows) against prediction.
        classes: the K names.

    Returns:
        "miou", the mean over the classes that occur in truth or prediction; "pixel_accuracy"; and
        the IoU of each of these classes as "iou/<name>".

    Raises:
        UserError: there are no pixels.
    """
    if not confusion.any():
        raise UserError(
            "Every pixel of the scored masks is ignored, so there is nothing to score: "
            "--check_data shows what the masks hold; correct them, or the class file that says "
            "what their values mean."
        )
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = {
        name: (hit / total).item()
        for name, hit, total in zip(classes, hits, union, strict=True)
        if total > 0
    }
    return {
        "miou": sum(iou.values()) / max(1, len(iou)),
        "pixel_accuracy": (hits.sum() / confusion.sum().clamp(min=1)).item(),
        **{f"iou/{name}": value for name, value in iou.items()},
    }
