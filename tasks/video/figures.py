"""Pictures to look at: clips as strips of their frames, with truth and prediction."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as F

GAP = 4
PAPER = (255, 255, 255)
INK = (30, 30, 30)
RIGHT, WRONG = (30, 130, 60), (190, 40, 30)
FONT_SIZE = 14


def film_strip(
    clip: torch.Tensor,
    truth: str,
    prediction: str | None = None,
    probability: float | None = None,
    frames: int = 8,
    height: int = 96,
) -> torch.Tensor:
    """Frames of a clip side by side in their order, over what it shows and what was predicted.

    Args:
        clip: uint8 (T, 3, H, W).
        truth: name of its class.
        prediction: name of the predicted class; written in green if right and in red if not.
        probability: of the prediction.
        frames: at most so many, evenly spaced.
        height: pixels to which frames are resized.

    Returns:
        uint8 (3, H', W').
    """
    shown = torch.linspace(0, len(clip) - 1, min(frames, len(clip))).round().long()
    clip = clip.cpu()[shown]
    width = max(1, round(clip.shape[3] * height / clip.shape[2]))
    clip = F.pad(F.resize(clip, [height, width], antialias=True), [0, 0, GAP, 0], fill=list(PAPER))
    strip = torch.cat([*clip], dim=2)[:, :, :-GAP]
    pieces = [(truth, INK)]
    if prediction is not None:
        certainty = "" if probability is None else f" {100 * probability:.0f} %"
        color = RIGHT if prediction == truth else WRONG
        pieces.append((f"predicted {prediction}{certainty}", color))
    caption = _caption(pieces)
    wide = max(strip.shape[2], caption.shape[2])
    parts = [F.pad(p, [0, 0, wide - p.shape[2], 0], fill=list(PAPER)) for p in (strip, caption)]
    return torch.cat(parts, dim=1)


def film_sheet(strips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Strips below each other: uint8 (3, H, W)."""
    width = max(strip.shape[2] for strip in strips)
    rows = [
        F.pad(strip, [GAP, GAP, GAP + width - strip.shape[2], GAP], fill=list(PAPER))
        for strip in strips
    ]
    return torch.cat(rows, dim=1)


def _caption(pieces: Sequence[tuple[str, tuple[int, int, int]]]) -> torch.Tensor:
    """Coloured pieces of text in a line: uint8 (3, H, W)."""
    font = ImageFont.load_default(FONT_SIZE)
    lengths = [int(np.ceil(font.getlength(text))) + 2 * GAP for text, _ in pieces]
    canvas = Image.new("RGB", (sum(lengths), FONT_SIZE + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (text, color) in enumerate(pieces):
        place = sum(lengths[:number]), canvas.height / 2
        pen.text(place, text, fill=color, font=font, anchor="lm")
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
