"""Segmentation losses as sums, to be divided by counts over the global batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from data.masks import IGNORE


def cross_entropy_sum(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Cross entropy added over the valid pixels, each times the weight of its class.

    Args:
        logits: (B, K, H, W).
        target: class ids (B, H, W), int64, 255 where ignored.
        weight: (K,), or None for equal weights.

    Returns:
        A scalar.
    """
    options = {"weight": weight, "ignore_index": IGNORE}
    if torch.are_deterministic_algorithms_enabled():  # on a GPU, a sum within the operation is not
        return F.cross_entropy(logits, target, **options, reduction="none").sum()
    return F.cross_entropy(logits, target, **options, reduction="sum")


def weight_sum(target: Tensor, weight: Tensor | None) -> Tensor:
    """The denominator of ``cross_entropy_sum``: the valid pixels' weights, added up.

    Args:
        target: class ids (B, H, W), int64, 255 where ignored.
        weight: (K,), or None to count pixels.

    Returns:
        A scalar.
    """
    valid = target != IGNORE
    if weight is None:
        return valid.sum()
    return (weight[target.masked_fill(~valid, 0)] * valid).sum()


def dice_sum(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss of each image, added over the images (Milletari et al., V-Net, 2016).

    An image's loss is the mean over the classes that occur in it of 1 - 2 |P T| / (|P| + |T|).
    Each image counts by itself, so the sum over a global batch doesn't depend on how the batch is
    split over processes.

    Args:
        logits: (B, K, H, W).
        target: class ids (B, H, W), int64, 255 where ignored.

    Returns:
        A scalar.
    """
    return dice_of_counts(dice_counts(logits, target))


def dice_counts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What ``dice_sum`` is computed from; those of the parts of an image add up.

    Args:
        logits: (B, K, H, W).
        target: class ids (B, H, W), int64, 255 where ignored.

    Returns:
        Of each image and class, (B, K) each: |P T|, |P| and |T|.
    """
    valid = target != IGNORE
    probability = (logits.softmax(1) * valid.unsqueeze(1)).flatten(2)
    # Gather and scatter, because a one-hot truth would take K times the memory of the target.
    truth = target.masked_fill(~valid, 0).flatten(1)
    of_truth = probability.gather(1, truth.unsqueeze(1)).squeeze(1)
    none = of_truth.new_zeros(logits.shape[:2])
    overlap = none.scatter_add(1, truth, of_truth)
    pixels = none.scatter_add(1, truth, valid.flatten(1).to(none.dtype))
    return overlap, probability.sum(2), pixels


def dice_of_counts(counts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The sum over images that ``dice_sum`` returns, of ``dice_counts``."""
    overlap, probability, pixels = counts
    present = pixels > 0
    loss = (1 - 2 * overlap / (probability + pixels).clamp(min=1e-6)) * present
    return (loss.sum(1) / present.sum(1).clamp(min=1)).sum()


def median_frequency_weights(pixels: Tensor, images: Tensor) -> Tensor:
    """Class weights median(f) / f_c (Eigen & Fergus, 2015).

    Args:
        pixels: (K,) pixels of each class in the data set.
        images: (K,) images in which the class occurs; f_c is their mean number of pixels of c.

    Returns:
        (K,) weights; 0 for a class that doesn't occur.
    """
    frequency = pixels.double() / images.clamp(min=1)
    present = frequency > 0
    weights = frequency[present].quantile(0.5) / frequency.clamp(min=1e-12)
    return torch.where(present, weights, 0.0).float()
