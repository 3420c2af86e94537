"""A confusion matrix as a figure."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as F

from figures.canvas import FONT, GAP, INK, PAPER, shortened

MOST = 30  # rows and columns that are drawn
CELL = 34  # pixels, side of a cell
LONGEST = 160  # pixels of a name
FULL = (20, 80, 150)  # of a cell that holds its whole row
EDGE = (225, 225, 225)  # of every cell
SMALL_FONT = ImageFont.load_default(10)  # for counts of four characters
AXES = ("columns: predicted", "rows: true")


def confusion_figure(matrix: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
    """Counts of true class (rows) against predicted class (columns), coloured by share of the row.

    More than 30 classes are drawn as about 30 groups of consecutive ones, named by their first and
    last number; a confusion within a group then lies on the diagonal.

    Args:
        matrix: (K, K) counts.
        classes: K names.

    Returns:
        uint8 (3, H, W).
    """
    counts, names = matrix.cpu().double().numpy(), classes
    if len(names) > MOST:
        counts, names = _grouped(counts)
    names = [shortened(name, LONGEST) for name in names]
    margin = int(max(map(FONT.getlength, [*names, *AXES]))) + 2 * GAP
    side = margin + CELL * len(names) + GAP
    canvas = Image.new("RGB", (side, side), PAPER)
    upright = Image.new("RGB", (margin, side), PAPER)  # the names of the columns before the turn
    for number, name in enumerate(names):
        middle = margin + (number + 0.5) * CELL
        ImageDraw.Draw(upright).text((GAP, middle), name, fill=INK, font=FONT, anchor="lm")
    canvas.paste(upright.rotate(90, expand=True), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, name in enumerate(names):
        middle = margin + (number + 0.5) * CELL
        pen.text((margin - GAP, middle), name, fill=INK, font=FONT, anchor="rm")
    for number, axis in enumerate(AXES):
        pen.text((GAP, (1 + 3 * number) * GAP), axis, fill=INK, font=FONT, anchor="lt")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(counts.shape):
        corner = margin + column * CELL, margin + row * CELL
        _draw_cell(pen, corner, counts[row, column], shares[row, column])
    return F.pil_to_tensor(canvas)


def _grouped(counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Sums over runs of equally many neighbouring classes, and the names of the runs."""
    length = -(-len(counts) // MOST)
    starts = np.arange(0, len(counts), length)
    summed = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    last = [min(start + length, len(counts)) - 1 for start in starts]
    names = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, last, strict=True)]
    return summed, names


def _draw_cell(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], count: float, share: float
) -> None:
    strength = np.sqrt(share)  # the root makes rare confusions visible
    color = tuple(round(p + strength * (f - p)) for p, f in zip(PAPER, FULL, strict=True))
    x, y = corner
    pen.rectangle((x, y, x + CELL, y + CELL), fill=color, outline=EDGE)
    if count:
        text = _short(count)
        font = FONT if len(text) < 4 else SMALL_FONT
        ink = PAPER if strength > 0.6 else INK
        pen.text((x + CELL / 2, y + CELL / 2), text, fill=ink, font=font, anchor="mm")


def _short(count: float) -> str:
    """A count in at most four characters."""
    if count >= 1e6:
        return f"{count / 1e6:.0f}M"
    return f"{count / 1e3:.0f}k" if count >= 1e4 else f"{count:.0f}"
