"""Pictures to look at: those that a classifier gets wrong, with what it took them for."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from figures.sheet import FONT_SIZE, GAP, INK, PAPER

WRONG = (190, 30, 30)
RIGHT = (20, 120, 50)
SIDE = 128  # pixels of the square that a picture is fitted into
CELL = SIDE + 2 * GAP
CAPTION = 2 * (FONT_SIZE + 3) + GAP


def misclassified_figure(
    images: Sequence[torch.Tensor],
    truths: Sequence[int],
    predictions: Sequence[int],
    probabilities: Sequence[float],
    classes: Sequence[str],
    columns: int = 6,
) -> torch.Tensor:
    """A contact sheet: each picture over its prediction with the probability, and its truth.

    The prediction is red where it is wrong and green where it is right.

    Args:
        images: uint8 (3, H, W) each, of any sizes; none gives a sheet that says so.
        truths: label of each.
        predictions: predicted label of each.
        probabilities: of the prediction, 0 to 1.
        classes: name of each label.
        columns: pictures side by side.

    Returns:
        uint8 (3, H', W').
    """
    font = ImageFont.load_default(FONT_SIZE)
    if not images:
        canvas = Image.new("RGB", (3 * CELL, FONT_SIZE + 2 * GAP), PAPER)
        ImageDraw.Draw(canvas).text((GAP, GAP), "No picture is misclassified.", INK, font)
        return _tensor(canvas)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * CELL, rows * (CELL + CAPTION)), PAPER)
    pen = ImageDraw.Draw(canvas)
    cells = zip(images, truths, predictions, probabilities, strict=True)
    for number, (image, truth, prediction, probability) in enumerate(cells):
        x, y = number % columns * CELL, number // columns * (CELL + CAPTION)
        picture = _fitted(image)
        left, above = (SIDE - picture.width) // 2, (SIDE - picture.height) // 2
        canvas.paste(picture, (x + GAP + left, y + GAP + above))
        share = f" {100 * float(probability):.0f} %"
        color = RIGHT if int(prediction) == int(truth) else WRONG
        guess = _shortened(classes[int(prediction)], font, SIDE - font.getlength(share)) + share
        pen.text((x + GAP, y + CELL), guess, color, font)
        real = _shortened(f"is {classes[int(truth)]}", font, SIDE)
        pen.text((x + GAP, y + CELL + FONT_SIZE + 3), real, INK, font)
    return _tensor(canvas)


def _fitted(image: torch.Tensor) -> Image.Image:
    """The picture within a square of SIDE; a small one is enlarged pixel by pixel."""
    picture = Image.fromarray(image.cpu().permute(1, 2, 0).numpy())
    factor = SIDE / max(picture.size)
    mode = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BILINEAR
    return picture.resize([max(1, round(side * factor)) for side in picture.size], mode)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _tensor(canvas: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
