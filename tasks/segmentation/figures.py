"""Figures of segmentation: an image beside its truth and its prediction, in class colours."""

from collections.abc import Sequence

import torch
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from data.masks import IGNORE, Color
from figures.canvas import grid
from figures.sheet import stripes

OPACITY = 0.75  # of the class colours over the image in grey, which shows through
MIN_HEIGHT = 192  # pixels; smaller images are enlarged by a whole factor to at least this height


def segmentation_panel(
    image: torch.Tensor, truth: torch.Tensor, prediction: torch.Tensor, colors: Sequence[Color]
) -> torch.Tensor:
    """Image | truth | prediction side by side, for ``figures.sheet.contact_sheet``.

    Pixels that the truth ignores are striped in the truth; the prediction is shown everywhere.

    Args:
        image: uint8 (3, h, w).
        truth: (H, W) class ids or 255; the panel has its resolution.
        prediction: (H, W) class ids.
        colors: RGB of each class.

    Returns:
        uint8 (3, H', W').
    """
    image = image.cpu()
    if image.shape[1:] != truth.shape:
        image = F.resize(image, list(truth.shape), antialias=True)
    grey = F.rgb_to_grayscale(image, num_output_channels=3)
    parts = [image]
    for mask in (truth.cpu(), prediction.cpu()):
        ids = mask[mask != IGNORE].unique()
        inks = [tuple(colors[number]) for number in ids.tolist()]
        colored = grey
        if inks:
            colored = draw_segmentation_masks(grey, mask == ids[:, None, None], OPACITY, inks)
        parts.append(torch.where(mask == IGNORE, stripes(*mask.shape), colored))
    factor = -(-MIN_HEIGHT // truth.shape[0])
    parts = [part.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for part in parts]
    return grid(parts, columns=3)
