"""How the pixels of an image are scaled before a network sees them."""

from typing import NamedTuple

import torch
from torch import Tensor


class PixelScaling(NamedTuple):
    """How images are scaled: (value - mean) / std.

    Attributes:
        mean: of red, green and blue, for values from 0 to 1.
        std: the same for the standard deviation.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def of_bytes(
        self, dtype: torch.dtype, device: torch.device, dims: int
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation for values from 0 to 255.

        Args:
            dtype: of the result.
            device: of the result.
            dims: 2 for images (B, 3, H, W), 3 for clips (B, 3, T, H, W).

        Returns:
            Two tensors that broadcast against a batch: (1, 3, 1, 1) or (1, 3, 1, 1, 1).
        """
        mean, std = (255 * torch.tensor(self, dtype=dtype)).to(device)
        shape = (1, 3, *(1,) * dims)
        return mean.view(shape), std.view(shape)


IMAGENET = PixelScaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
