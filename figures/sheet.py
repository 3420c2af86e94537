"""Panels below each other under their headings, over a legend of the class colours."""

from collections.abc import Sequence

import torch
from torchvision.transforms.v2 import functional as F

from data.masks import Color
from figures.canvas import GAP, INK, LINE, PAPER, framed, grid, stack, text_line

IGNORED_COLOR = (0, 0, 0)
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
    return color_key([*zip(classes, colors, strict=True), ("ignored", IGNORED_COLOR)], width)


def color_key(named: Sequence[tuple[str, Color]], width: int) -> torch.Tensor:
    """Names beside their colours, in rows that fit into ``width`` pixels: uint8 (3, H, W)."""
    entries = [_legend_entry(name, color) for name, color in named]
    widest = max(entry.shape[2] for entry in entries)
    return grid(entries, columns=max(1, (width + GAP) // (widest + GAP)))


def _legend_entry(name: str, color: Color) -> torch.Tensor:
    box = torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, LINE - 8, LINE - 8)
    box = F.pad(F.pad(box, [1], fill=list(INK)), [0, 3, GAP, 3], fill=list(PAPER))
    return torch.cat([box, text_line((f"{name}   ", INK))], dim=2)  # apart from the next box


def _fitted(panel: torch.Tensor) -> torch.Tensor:
    _, height, width = panel.shape
    if width <= MAX_PANEL_WIDTH:
        return panel
    size = [max(1, round(height * MAX_PANEL_WIDTH / width)), MAX_PANEL_WIDTH]
    return F.resize(panel, size, antialias=True)
