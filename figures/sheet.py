"""Pictures to look at: image, truth and prediction side by side in class colours, with a legend."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as F

from data.masks import Color

GAP = 6  # pixels between the parts of a picture
PAPER = (255, 255, 255)
INK = (30, 30, 30)
IGNORED_COLOR = (0, 0, 0)
FONT_SIZE = 15
HEADINGS = ("image", "truth", "prediction")
# Wider panels are scaled down: a sheet of Cityscapes' would weigh 20 MB at every evaluation.
MAX_PANEL_WIDTH = 1536


def legend(classes: Sequence[str], colors: Sequence[Color], width: int = 720) -> torch.Tensor:
    """Every class's name beside its colour, in as many rows as ``width`` pixels ask for.

    Returns:
        uint8 (3, H, width).
    """
    font = ImageFont.load_default(FONT_SIZE)
    entries = [*zip(classes, colors, strict=True), ("ignored", IGNORED_COLOR)]
    box, row = FONT_SIZE, FONT_SIZE + 2 * GAP
    cell = max(box + 3 * GAP + int(np.ceil(font.getlength(name))) for name, _ in entries)
    columns = max(1, width // cell)
    canvas = Image.new("RGB", (width, row * -(-len(entries) // columns)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (name, color) in enumerate(entries):
        x, y = number % columns * cell, number // columns * row + GAP
        pen.rectangle((x, y, x + box - 1, y + box - 1), fill=tuple(color), outline=INK)
        middle = (x + box + GAP, y + box / 2)
        pen.text(middle, name, fill=INK, font=font, anchor="lm")
    return _tensor(canvas)


def contact_sheet(
    panels: Sequence[torch.Tensor],
    classes: Sequence[str],
    colors: Sequence[Color],
    columns: int = 1,
) -> torch.Tensor:
    """Panels in a grid under their headings, over a legend: one picture to save or to log.

    Args:
        panels: from ``segmentation_panel``; they may differ in size, and are scaled down to
            MAX_PANEL_WIDTH.
        classes: name of each class.
        colors: RGB of each class.
        columns: panels side by side.

    Returns:
        uint8 (3, H, W).
    """
    panels = [_fitting(panel) for panel in panels]
    cell_width = max(panel.shape[2] for panel in panels)
    cell_width = max(cell_width, 360)  # the headings need so much
    columns = min(columns, len(panels))
    heading = torch.cat([_heading(panels[0].shape[2], cell_width)] * columns, dim=2)
    width = heading.shape[2] - GAP
    rows = [heading[:, :, :width]]
    for first in range(0, len(panels), columns):
        row = panels[first : first + columns]
        height = max(panel.shape[1] for panel in row)
        cells = [_onpaper(panel, height + GAP, cell_width + GAP) for panel in row]
        cells += [paper(height + GAP, cell_width + GAP)] * (columns - len(row))
        rows.append(torch.cat(cells, dim=2)[:, :, :width])
    rows.append(legend(classes, colors, width))
    sheet = torch.cat(rows, dim=1)
    return F.pad(sheet, [2 * GAP, GAP, 2 * GAP, GAP], fill=list(PAPER))


def _fitting(panel: torch.Tensor) -> torch.Tensor:
    _, height, width = panel.shape
    if width <= MAX_PANEL_WIDTH:
        return panel
    size = [max(1, round(height * MAX_PANEL_WIDTH / width)), MAX_PANEL_WIDTH]
    return F.resize(panel, size, antialias=True)


def _heading(panel_width: int, width: int) -> torch.Tensor:
    canvas = Image.new("RGB", (width + GAP, FONT_SIZE + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(FONT_SIZE)
    for number, text in enumerate(HEADINGS):
        x = number * (panel_width + GAP) // 3
        pen.text((x, GAP + FONT_SIZE / 2), text, fill=INK, font=font, anchor="lm")
    return _tensor(canvas)


def paper(height: int, width: int) -> torch.Tensor:
    """White, uint8 (3, height, width)."""
    return torch.tensor(PAPER, dtype=torch.uint8)[:, None, None].expand(3, height, width)


def _onpaper(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    right, below = width - picture.shape[2], height - picture.shape[1]
    return F.pad(picture, [0, 0, right, below], fill=list(PAPER))


def _tensor(canvas: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
