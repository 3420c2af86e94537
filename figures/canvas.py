"""What every figure is made of: white paper, one font, colours, lines of text and their layout."""

from collections.abc import Sequence
from math import ceil

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as F
from torchvision.utils import make_grid

from data.masks import Color

GAP = 6  # pixels between the parts of a figure
LINE = 20  # pixels, height of a line of text
PAPER = (255, 255, 255)
INK = (30, 30, 30)
RIGHT, WRONG = (30, 130, 60), (190, 40, 30)  # of predictions
FONT = ImageFont.load_default(14)


def text_line(*pieces: tuple[str, Color], width: int = 0) -> torch.Tensor:
    """A line of text.

    Args:
        pieces: each a text and its colour, drawn one after the other.
        width: at least so many pixels.

    Returns:
        uint8 (3, LINE, W).
    """
    lengths = [FONT.getlength(text) for text, _ in pieces]
    canvas = Image.new("RGB", (max(width, ceil(sum(lengths))), LINE), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (text, color) in enumerate(pieces):
        place = sum(lengths[:number]), LINE / 2
        pen.text(place, text, fill=color, font=FONT, anchor="lm")
    return F.pil_to_tensor(canvas)


def shortened(text: str, width: float) -> str:
    """The text, its end replaced by an ellipsis if it is wider than ``width`` pixels."""
    if FONT.getlength(text) <= width:
        return text
    while text and FONT.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def grid(parts: Sequence[torch.Tensor], columns: int) -> torch.Tensor:
    """Parts in rows, with a gap between them; the smaller ones are filled up with paper.

    Args:
        parts: uint8 (3, h, w) each, of any sizes.
        columns: parts side by side.

    Returns:
        uint8 (3, H, W), without a border.
    """
    height, width = (max(part.shape[dim] for part in parts) for dim in (1, 2))
    cells = [_filled_up(part, height, width) for part in parts]
    if len(cells) == 1:
        return cells[0]
    return make_grid(cells, columns, GAP, pad_value=PAPER[0])[:, GAP:-GAP, GAP:-GAP]


def stack(parts: Sequence[torch.Tensor], gap: int = 0) -> torch.Tensor:
    """Parts of any sizes below each other, with ``gap`` pixels between them: uint8 (3, H, W)."""
    width = max(part.shape[2] for part in parts)
    rows = [_filled_up(part, part.shape[1] + gap, width) for part in parts]
    return torch.cat(rows, dim=1)[:, : -gap or None]


def framed(figure: torch.Tensor) -> torch.Tensor:
    """A figure with a border of paper: uint8 (3, H + 2 GAP, W + 2 GAP)."""
    return F.pad(figure, [GAP], fill=list(PAPER))


def _filled_up(part: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.pad(part, [0, 0, width - part.shape[2], height - part.shape[1]], fill=list(PAPER))
