"""Drawings of segmentation: an image beside its truth and its prediction, in class colours."""

from collections.abc import Sequence

import torch
from torchvision.transforms.v2 import functional as F

from data.masks import IGNORE, Color
from figures.sheet import GAP, IGNORED_COLOR, paper


def colorize(mask: torch.Tensor, colors: Sequence[Color]) -> torch.Tensor:
    """A mask (H, W) in class colours, ignored pixels black: uint8 (3, H, W)."""
    table = torch.zeros(256, 3, dtype=torch.uint8)
    table[: len(colors)] = torch.tensor(colors, dtype=torch.uint8)
    table[IGNORE] = torch.tensor(IGNORED_COLOR, dtype=torch.uint8)
    return table[mask.cpu().long()].permute(2, 0, 1)


def segmentation_panel(
    image: torch.Tensor,
    truth: torch.Tensor,
    prediction: torch.Tensor,
    colors: Sequence[Color],
    opacity: float = 0.75,
    min_height: int = 192,
) -> torch.Tensor:
    """Image | truth | prediction side by side.

    Pixels that the truth ignores are black in the truth; the prediction is shown everywhere.

    Args:
        image: uint8 (3, h, w).
        truth: (H, W) class ids or 255; the panel has its resolution.
        prediction: (H, W) class ids.
        colors: RGB of each class.
        opacity: of the class colours over the image in grey, which shows through.
        min_height: smaller pictures are enlarged by a whole factor to at least this height.

    Returns:
        uint8 (3, H', W').
    """
    image = image.cpu()
    if image.shape[1:] != truth.shape:
        image = F.resize(image, list(truth.shape), antialias=True)
    grey = F.rgb_to_grayscale(image, num_output_channels=3)
    parts = [image]
    for mask in (truth, prediction):
        blend = opacity * colorize(mask, colors).float() + (1 - opacity) * grey.float()
        blend[:, mask.cpu() == IGNORE] = torch.tensor(IGNORED_COLOR).float()[:, None]
        parts.append(blend.round().to(torch.uint8))
    factor = -(-min_height // truth.shape[0])
    parts = [part.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for part in parts]
    gap = paper(parts[0].shape[1], GAP)
    return torch.cat([parts[0], gap, parts[1], gap, parts[2]], dim=2)
