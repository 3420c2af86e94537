"""The metrics of segmentation."""

from collections.abc import Sequence

from torch import Tensor


def segmentation_metrics(confusion: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Intersection over union and pixel accuracy.

    Args:
        confusion: (K, K) pixels, truth (rows) against prediction.
        classes: the K names.

    Returns:
        "miou", the mean over the classes that occur in truth or prediction; "pixel_accuracy"; and
        the IoU of each of these classes as "iou/<name>".
    """
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
