"""Random changes of colours, and the colour of missing pixels, for every task's transforms."""

import math
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.pixels import IMAGENET

# The colour of missing or erased pixels: about zero once pixels are scaled.
FILL = [round(255 * value) for value in IMAGENET.mean]

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in a grey


class ColorJitter(v2.Transform):
    """Brightness, contrast, saturation and hue at once, as one affine map of the colours.

    torchvision's ColorJitter makes a pass over the image for each, and a slow one through HSV for
    hue. One pass takes less than half of the time without hue and a tenth with it, and clips no
    colour in between.

    Args:
        brightness: largest relative change; the factor is uniform in [1 - b, 1 + b].
        contrast: the same, about the image's mean grey.
        saturation: the same, about each pixel's grey.
        hue: largest rotation of the colours about the grey axis, in turns.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        super().__init__()
        self.changes = (brightness, contrast, saturation, hue)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the colour matrix, and the share of the mean grey that is added."""
        changes = torch.tensor(self.changes) * torch.empty(4).uniform_(-1, 1)
        brightness, contrast, saturation = (1 + changes[:3]).clamp(min=0).tolist()
        grey = torch.tensor(LUMA).expand(3, 3)
        saturate = saturation * torch.eye(3) + (1 - saturation) * grey
        matrix = brightness * contrast * saturate @ _hue_rotation(changes[3].item())
        return {"matrix": matrix, "added_grey": brightness * (1 - contrast)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change an image; anything else passes through."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        pixels = inpt.as_subclass(torch.Tensor).reshape(3, -1)
        # A sum of integers is exact, and so the same for any number of threads.
        grey = torch.tensor(LUMA) @ pixels.sum(dim=1).float() / pixels.shape[1]
        offset = params["added_grey"] * grey + 0.5  # the half rounds
        changed = (
            torch.addmm(offset, params["matrix"], pixels.float()).clamp_(0, 255).to(torch.uint8)
        )
        return tv_tensors.wrap(changed.reshape(inpt.shape), like=inpt)


def _hue_rotation(turns: float) -> torch.Tensor:
    """Rotation of RGB about the axis of greys (Rodrigues' formula)."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return cos * torch.eye(3) + (1 - cos) / 3 + sin * cross
