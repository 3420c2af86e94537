"""Precision-recall curves as a figure."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as F

from data.masks import Color
from figures.sheet import INK, PAPER
from tasks.detection.rows import class_colors

SMOOTH = 3  # drawn so many times as large and shrunk, which smooths the lines
PLOT, MARGIN, NAMES = 400, 56, 250  # pixels: side of the plot, room for numbers, and for the legend
FONT_SIZE, ROW = 13, 17
GRID_COLOR = (222, 222, 222)
NAMED = 20  # classes in the legend
GRID = np.linspace(0, 1, 101)  # recalls at which the mean curve is taken

Curve = tuple[Sequence[float], Sequence[float]]


def pr_curves_figure(
    curves: Mapping[str, Curve],
    ap: Mapping[str, float],
    colors: Mapping[str, Color] | None = None,
) -> torch.Tensor:
    """Precision over recall: a thin line per class, and the mean over the classes as a thick one.

    Args:
        curves: (recall, precision) of each class, each from 0 to 1, recall ascending.
        ap: average precision of each class, for the legend; the 20 highest are named.
        colors: RGB of each class.

    Returns:
        uint8 (3, H, W).
    """
    colors = colors or dict(zip(curves, class_colors(len(curves)), strict=True))
    width, height = MARGIN + PLOT + NAMES, PLOT + 2 * MARGIN
    canvas = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE * SMOOTH)
    _draw_axes(pen, font)
    mean = np.zeros_like(GRID)
    for name, (recall, precision) in curves.items():
        precision = np.clip(precision, 0, 1)
        _draw_line(pen, recall, precision, colors[name], 1.5)
        # Beyond the last recall that is reached, precision is 0.
        mean += np.interp(GRID, recall, precision, right=0.0) / len(curves)
    if curves:
        _draw_line(pen, GRID, mean, INK, 3)
    _draw_legend(pen, font, curves, ap, colors)
    return F.pil_to_tensor(canvas.resize((width, height), Image.Resampling.BOX))


def _place(recall: float, precision: float) -> tuple[float, float]:
    return (MARGIN + recall * PLOT) * SMOOTH, (MARGIN + (1 - precision) * PLOT) * SMOOTH


def _draw_line(
    pen: ImageDraw.ImageDraw,
    recall: Sequence[float],
    precision: Sequence[float],
    color: Color,
    width: float,
) -> None:
    points = [_place(*point) for point in zip(recall, precision, strict=True)]
    pen.line(points, fill=tuple(color), width=round(width * SMOOTH), joint="curve")


def _draw_axes(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> None:
    gap = 6 * SMOOTH
    for tenth in range(0, 11, 2):
        value = tenth / 10
        pen.line((_place(value, 0), _place(value, 1)), fill=GRID_COLOR, width=SMOOTH)
        pen.line((_place(0, value), _place(1, value)), fill=GRID_COLOR, width=SMOOTH)
        x, y = _place(value, 0)
        pen.text((x, y + gap), f"{value:.1f}", fill=INK, font=font, anchor="mt")
        x, y = _place(0, value)
        pen.text((x - gap, y), f"{value:.1f}", fill=INK, font=font, anchor="rm")
    pen.rectangle((*_place(0, 1), *_place(1, 0)), outline=INK, width=SMOOTH)
    x, y = _place(0.5, 0)
    pen.text((x, y + 26 * SMOOTH), "recall", fill=INK, font=font, anchor="mt")
    x, y = _place(0, 1)
    pen.text((x, y - gap), "precision", fill=INK, font=font, anchor="mb")


def _draw_legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    curves: Mapping[str, Curve],
    ap: Mapping[str, float],
    colors: Mapping[str, Color],
) -> None:
    names = sorted(curves, key=lambda name: -ap[name])
    entries = [(f"{ap[name]:.3f}  {name}", tuple(colors[name]), 1.5) for name in names[:NAMED]]
    if names:
        mean = sum(ap[name] for name in names) / len(names)
        entries.insert(0, (f"{mean:.3f}  mean of {len(names)}", INK, 3))
    if len(names) > NAMED:
        entries.append((f"and {len(names) - NAMED} classes below", PAPER, 0))
    left = (MARGIN + PLOT + 20) * SMOOTH
    for number, (text, color, width) in enumerate(entries):
        y = (MARGIN + (number + 0.5) * ROW) * SMOOTH
        if width:
            line = (left, y, left + 18 * SMOOTH, y)
            pen.line(line, fill=color, width=round(width * SMOOTH))
        pen.text((left + 26 * SMOOTH, y), text, fill=INK, font=font, anchor="lm")
