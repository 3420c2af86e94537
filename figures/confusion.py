"""A confusion matrix as a figure."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

MOST = 30  # classes that are drawn; more are numbered groups of neighbours
PAPER = (255, 255, 255)
INK = (30, 30, 30)
FULL = (20, 80, 150)  # of a cell that holds its whole row
GAP = 6
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
    counts = matrix.detach().cpu().double().numpy()
    names = [str(name) for name in classes]
    if len(names) > MOST:
        counts, names = _grouped(counts)
    cell, label_font = 34, ImageFont.load_default(13)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    margin = int(max(label_font.getlength(name) for name in [*names, *AXES])) + 2 * GAP
    side = cell * len(names)
    canvas = Image.new("RGB", (margin + side + GAP, margin + side + GAP), PAPER)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pen = ImageDraw.Draw(canvas)
    for row, column in np.ndindex(counts.shape):
        corner = margin + column * cell, margin + row * cell
        _draw_cell(pen, corner, cell, counts[row, column], shares[row, column])
    for number, name in enumerate(names):
        middle = margin + (number + 0.5) * cell
        pen.text((margin - GAP, middle), name, fill=INK, font=label_font, anchor="rm")
        _write_upwards(canvas, name, label_font, (middle, margin - GAP))
    for number, axis in enumerate(AXES):
        pen.text((GAP, (1 + 3 * number) * GAP), axis, fill=INK, font=label_font, anchor="lt")
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def _grouped(counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Sums over runs of equally many neighbouring classes."""
    length = -(-len(counts) // MOST)
    starts = np.arange(0, len(counts), length)
    summed = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    last = [min(start + length, len(counts)) - 1 for start in starts]
    names = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, last, strict=True)]
    return summed, names


def _draw_cell(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, count: float, share: float
) -> None:
    # The root makes rare confusions visible.
    strength = np.sqrt(share)
    color = tuple(round(p + strength * (f - p)) for p, f in zip(PAPER, FULL, strict=True))
    x, y = corner
    pen.rectangle((x, y, x + cell, y + cell), fill=color, outline=(225, 225, 225))
    if count:
        text = _short(count)
        font = ImageFont.load_default(13 if len(text) < 4 else 10)
        ink = PAPER if strength > 0.6 else INK
        pen.text((x + cell / 2, y + cell / 2), text, fill=ink, font=font, anchor="mm")


def _short(count: float) -> str:
    """A count in at most four characters."""
    for unit, divisor in (("M", 1e6), ("k", 1e3)):
        if count >= divisor * (1 if unit == "M" else 10):
            return f"{count / divisor:.0f}{unit}"
    return f"{count:.0f}"


def _write_upwards(
    canvas: Image.Image, text: str, font: ImageFont.FreeTypeFont, foot: tuple[float, float]
) -> None:
    """Text that is read from below, centred above a point."""
    width, height = int(font.getlength(text)) + 2, 18
    strip = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(strip).text((0, height / 2), text, fill=INK, font=font, anchor="lm")
    canvas.paste(strip.rotate(90, expand=True), (int(foot[0] - height / 2), int(foot[1] - width)))
