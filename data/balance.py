"""How often samples are seen where some classes are rare: weights for the stream of samples."""

from collections.abc import Sequence

import numpy as np


def square_root_weights(labels: Sequence[int]) -> np.ndarray:
    """Weights by which a class is seen in proportion to the square root of its number of samples.

    A class with a hundredth of another's samples is then seen a tenth as often.

    Args:
        labels: the class id of each sample.

    Returns:
        float64 (N,), above 0.
    """
    ids = np.asarray(labels)
    return np.bincount(ids)[ids] ** -0.5


def repeat_factors(classes: Sequence[Sequence[int]]) -> np.ndarray:
    """LVIS's repeat factors (Gupta et al. 2019, arXiv:1908.03195), for images of several classes.

    The factor of a class is max(1, sqrt(t / f)), where f is the share of the images in which it
    occurs; that of an image is the largest of its classes', and 1 without any. LVIS takes a
    thousandth for t. Here it is the share of the median class, so that half of the classes are seen
    more often in data of any size.

    Args:
        classes: the class ids of each image's objects; they may repeat.

    Returns:
        float64 (N,), at least 1.
    """
    sets = [sorted(set(ids)) for ids in classes]
    counts = np.bincount([number for ids in sets for number in ids])
    occurring = counts[counts > 0]
    if not len(occurring):
        return np.ones(len(sets))
    factors = np.maximum(1, np.sqrt(np.median(occurring) / np.maximum(counts, 1)))
    return np.array([max((factors[number] for number in ids), default=1.0) for ids in sets])
