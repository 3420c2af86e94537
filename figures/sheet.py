"""Panels below each other under their headings, over a legend of the class colours."""

from collections.abc import Iterable, Sequence

import torch
from torchvision.transforms.v2 import functional as F

from data.masks import Color
from figures.canvas import GAP, INK, LINE, PAPER, framed, grid, stack, text_line

IGNORED_COLOR = (0, 0, 0)  # of what is ignored and can't be striped, such as a box
# Ignored pixels are striped in black and grey, so that no class can be taken for them.
STRIPES, STRIPE_WIDTH = (0, 200), 3
HEADINGS = ("image", "truth", "prediction")
# Wider panels are scaled down: a sheet of Cityscapes would weigh 20 MB at every evaluation.
MAX_PANEL_WIDTH = 1536


def contact_sheet(
    panels: Sequence[torch.Tensor], classes: Sequence[str], colors: Sequence[Color]
) -> torch.Tensor:
    """One figure of several panels.

    Args:
        panels: image, truth and prediction side by side, uint8 (3, H, W); they may differ in size,
            and those wider than MAX_PANEL_WIDTH are scaled down.
        classes: name of each class.
        colors: RGB of each class.

    Returns:
        uint8 (3, H', W').
    """
    panels = [_fitted(panel) for panel in panels]
    third = (panels[0].shape[2] - 2 * GAP) // 3
    headings = grid([text_line((heading, INK), width=third) for heading in HEADINGS], columns=3)
    width = max(part.shape[2] for part in (headings, *panels))
    return framed(stack([headings, *panels, legend(classes, colors, width)], GAP))


def legend(classes: Sequence[str], colors: Sequence[Color], width: int) -> torch.Tensor:
    """The name of every class beside its colour, in rows that fit into ``width`` pixels.

    Returns:
        uint8 (3, H, W); wider than ``width`` only if a single name is.
    """
    side = LINE - 8
    return _key(
        [*_boxes(zip(classes, colors, strict=True)), ("ignored", stripes(side, side))], width
    )


def color_key(named: Sequence[tuple[str, Color]], width: int) -> torch.Tensor:
    """Names beside their colours, in rows that fit into ``width`` pixels: uint8 (3, H, W)."""
    return _key(_boxes(named), width)


def _boxes(named: Iterable[tuple[str, Color]]) -> list[tuple[str, torch.Tensor]]:
    colors = ((name, torch.tensor(color, dtype=torch.uint8)) for name, color in named)
    return [(name, color.view(3, 1, 1).expand(3, LINE - 8, LINE - 8)) for name, color in colors]


def _key(boxes: Sequence[tuple[str, torch.Tensor]], width: int) -> torch.Tensor:
    entries = [_legend_entry(name, box) for name, box in boxes]
    widest = max(entry.shape[2] for entry in entries)
    return grid(entries, columns=max(1, (width + GAP) // (widest + GAP)))


def stripes(height: int, width: int) -> torch.Tensor:
    """What stands for ignored pixels, black and grey diagonals: uint8 (3, height, width)."""
    diagonal = torch.arange(height)[:, None] + torch.arange(width)
    shades = torch.tensor(STRIPES, dtype=torch.uint8)
    return shades[diagonal // STRIPE_WIDTH % 2].expand(3, height, width)


def _legend_entry(name: str, box: torch.Tensor) -> torch.Tensor:
    box = F.pad(F.pad(box, [1], fill=list(INK)), [0, 3, GAP, 3], fill=list(PAPER))
    return torch.cat([box, text_line((f"{name}   ", INK))], dim=2)  # apart from the next box


def _fitted(panel: torch.Tensor) -> torch.Tensor:
    _, height, width = panel.shape
    if width <= MAX_PANEL_WIDTH:
        return panel
    size = [max(1, round(height * MAX_PANEL_WIDTH / width)), MAX_PANEL_WIDTH]
    return F.resize(panel, size, antialias=True)
