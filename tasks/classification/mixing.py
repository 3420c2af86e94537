"""mixup and CutMix, sample by sample.

The usual code mixes pictures of a batch with each other, so what a process learns depends on how
many share the batch. Here a sample draws its partner from the whole split with its own random
state, and the same training results on any number of processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Mix(NamedTuple):
    """How two images become one.

    Attributes:
        method: mixup or cutmix, which takes two images uint8 (3, H, W) and the share, and returns
            the mixed image and the share of the first in it.
        share: of the first image, from 0 to 1.
    """

    method: Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, float]]
    share: float


@dataclass(frozen=True)
class Mixing:
    """Which methods mix samples, at random from torch's generator; at least one is on.

    With both methods on, each is taken for half of the samples.

    Args:
        mixup: alpha of the Beta distribution of the shares in mixup (0: off); 0.2 is usual
            (https://arxiv.org/abs/1710.09412).
        cutmix: the same for CutMix; 1.0 is usual (https://arxiv.org/abs/1905.04899).
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def draw(self) -> "Mix":
        """Draw how one sample is mixed."""
        methods = [(a, mix) for a, mix in ((self.mixup, mixup), (self.cutmix, cutmix)) if a > 0]
        torch.rand(())
        alpha, method = methods[int(torch.randint(len(methods), ()))]
        return Mix(method, torch.distributions.Beta(alpha, alpha).sample().item())


def mixup(image: torch.Tensor, other: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """``share * image + (1 - share) * other``, rounded to bytes, and the share."""
    return torch.lerp(other.float(), image.float(), share).round().to(torch.uint8), share


def cutmix(image: torch.Tensor, other: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """``image`` with a window of ``other`` about a random point, and the share left of ``image``.

    The window has the picture's proportions and ``1 - share`` of its area, less what lies outside.
    """
    height, width = image.shape[-2:]
    side = (1 - share) ** 0.5
    rows, columns = _window(height, side), _window(width, side)
    mixed = image.clone()
    mixed[:, rows, columns] = other[:, rows, columns]
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - covered / (height * width)


def _window(length: int, side: float) -> slice:
    """A piece of ``side`` times the length about a random pixel, cut off at the ends."""
    wanted = round(length * side)
    first = int(torch.randint(length, ())) - wanted // 2
    return slice(max(0, first), min(length, first + wanted))
