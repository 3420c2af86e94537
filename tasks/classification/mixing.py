"""mixup and CutMix, sample by sample.

The usual code mixes the images of a process's batch with each other, so that training depends on
the number of processes. Here a sample draws its partner from the whole split with its own random
state, so that training is the same on any number of processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Mix(NamedTuple):
    """How two images become one.

    Attributes:
        method: ``mixup`` or ``cutmix``, which maps two images, uint8 (3, H, W), and the share to
            the mixed image and the share of the first one in it.
        share: share of the first image, from 0 to 1.
    """

    method: Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, float]]
    share: float


@dataclass(frozen=True)
class Mixing:
    """The methods that mix samples; at least one is on, and with both, each mixes half of them.

    Attributes:
        mixup: alpha of the Beta distribution of the shares in mixup (0: off); 0.2 is usual
            (https://arxiv.org/abs/1710.09412).
        cutmix: the same for CutMix; 1.0 is usual (https://arxiv.org/abs/1905.04899).
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def draw(self) -> Mix:
        """Draw from torch's generator how one sample is mixed."""
        methods = [(a, mix) for a, mix in ((self.mixup, mixup), (self.cutmix, cutmix)) if a > 0]
        alpha, method = methods[int(torch.randint(len(methods), ()))]
        return Mix(method, torch.distributions.Beta(alpha, alpha).sample().item())


def mixup(image: torch.Tensor, other: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """``share * image + (1 - share) * other``, rounded to bytes, and the share."""
    return torch.lerp(other.float(), image.float(), share).round().to(torch.uint8), share


def cutmix(image: torch.Tensor, other: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """``image`` with a window of ``other`` around a random point, and the share left of ``image``.

    The window has the proportions of the image and ``1 - share`` of its area, before it is clipped
    at the borders.
    """
    height, width = image.shape[-2:]
    side = (1 - share) ** 0.5
    rows, columns = _window(height, side), _window(width, side)
    mixed = image.clone()
    mixed[:, rows, columns] = other[:, rows, columns]
    covered = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - covered / (height * width)


def _window(length: int, side: float) -> slice:
    """A piece of ``side`` times the length around a random pixel, clipped at the ends."""
    wanted = round(length * side)
    first = int(torch.randint(length, ())) - wanted // 2
    return slice(max(0, first), min(length, first + wanted))
