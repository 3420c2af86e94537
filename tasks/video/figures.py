"""Figures of clips: strips of their frames, with truth and prediction."""

from collections.abc import Sequence

import torch
from torchvision.transforms.v2 import functional as F

from figures.canvas import GAP, INK, RIGHT, WRONG, framed, grid, stack, text_line

FRAMES = 8  # of a strip, at most
HEIGHT = 96  # pixels to which frames are resized


def film_strip(
    clip: torch.Tensor, truth: str | None, prediction: str, probability: float
) -> torch.Tensor:
    """Frames of a clip side by side, evenly spaced, over what it shows and what was predicted.

    Args:
        clip: uint8 (T, 3, H, W).
        truth: name of its class; None if it isn't known.
        prediction: name of the predicted class; written in green if right and in red if not.
        probability: of the prediction, from 0 to 1.

    Returns:
        uint8 (3, H', W').
    """
    shown = torch.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().long()
    width = max(1, round(clip.shape[3] * HEIGHT / clip.shape[2]))
    frames = F.resize(clip.cpu()[shown], [HEIGHT, width], antialias=True)
    guess = f"predicted {prediction} {100 * probability:.0f} %"
    if truth is None:
        caption = text_line((guess, INK))
    else:
        color = RIGHT if prediction == truth else WRONG
        caption = text_line((truth, INK), (f"    {guess}", color))
    return stack([grid([*frames], columns=FRAMES), caption])


def film_sheet(strips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Strips below each other: uint8 (3, H, W)."""
    return framed(stack(strips, GAP))
