"""A figure of the images that a classifier gets wrong."""

from collections.abc import Sequence

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from figures.canvas import FONT, INK, PAPER, WRONG, framed, grid, shortened, stack, text_line
from tasks.classification.metrics import Mistake

SIDE = 128  # pixels of the square that an image is fitted into
COLUMNS = 6


def misclassified_figure(
    images: Sequence[torch.Tensor], mistakes: Sequence[Mistake], classes: Sequence[str]
) -> torch.Tensor:
    """Images in a grid, each over what it was taken for, how surely, and what it is.

    Args:
        images: uint8 (3, H, W) each, of any sizes; without any, the figure says so.
        mistakes: one for each image.
        classes: name of each label.

    Returns:
        uint8 (3, H', W').
    """
    if not images:
        return framed(text_line(("No image is misclassified.", INK)))
    cells = []
    for image, mistake in zip(images, mistakes, strict=True):
        share = f" {100 * mistake.probability:.0f} %"
        guess = shortened(classes[mistake.prediction], SIDE - FONT.getlength(share))
        truth = shortened(f"is {classes[mistake.truth]}", SIDE)
        cells.append(
            stack([_fitted(image), text_line((guess + share, WRONG)), text_line((truth, INK))])
        )
    return framed(grid(cells, COLUMNS))


def _fitted(image: torch.Tensor) -> torch.Tensor:
    """The image in the middle of a square of SIDE; a small one is enlarged pixel by pixel."""
    image = image.cpu()
    factor = SIDE / max(image.shape[1:])
    mode = InterpolationMode.NEAREST_EXACT if factor >= 1 else InterpolationMode.BILINEAR
    height, width = (max(1, round(length * factor)) for length in image.shape[1:])
    image = F.resize(image, [height, width], mode, antialias=True)
    left, above = (SIDE - width) // 2, (SIDE - height) // 2
    padding = [left, above, SIDE - width - left, SIDE - height - above]
    return F.pad(image, padding, fill=list(PAPER))
