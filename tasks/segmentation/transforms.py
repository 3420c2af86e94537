"""Augmentation of image and mask together, on uint8, random from torch's generator alone.

Conversion to float and pixel scaling are left to the device, so that a worker sends a quarter of
the bytes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from data.colors import FILL, ColorJitter
from data.masks import IGNORE


class RandomScaledCrop(v2.Transform):
    """Scale image and mask by a random factor and cut a window of fixed size from them.

    A window larger than the scaled image holds it at a random place and is filled up: the image
    with the mean colour, the mask with IGNORE. Only the window's part is resampled, so the cost
    doesn't grow with the image. Image and mask share the pixel grid of half-pixel centres, so they
    stay aligned at every factor.

    Args:
        size: (height, width) of the result.
        scale: smallest and largest factor; the factor is uniform in its logarithm, so that halving
            is as likely as doubling.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        super().__init__()
        self.size = size
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor and the window."""
        height, width = F.get_size(flat_inputs[0])
        low, high = torch.tensor(self.scale).log().tolist()
        factor = torch.empty(()).uniform_(low, high).exp().item()
        rows, top, above = self._span(height, self.size[0], factor)
        columns, left, before = self._span(width, self.size[1], factor)
        below, after = self.size[0] - rows[1] - above, self.size[1] - columns[1] - before
        return {
            "box": (top, left, rows[0], columns[0]),
            "size": [rows[1], columns[1]],
            "padding": [before, above, after, below],
        }

    @staticmethod
    def _span(length: int, wanted: int, factor: float) -> tuple[tuple[int, int], int, int]:
        """Along one axis: (source pixels, resulting pixels), first source pixel, padding before.

        Args:
            length: of the image.
            wanted: length of the window.
            factor: of the scaling.
        """
        result = min(wanted, max(1, round(length * factor)))
        source = min(length, max(1, round(result / factor)))
        first = int(torch.randint(length - source + 1, ()))
        before = int(torch.randint(wanted - result + 1, ()))
        return (source, result), first, before

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut, resample and pad an image or a mask; anything else passes through."""
        if not isinstance(inpt, tv_tensors.Image | tv_tensors.Mask):
            return inpt
        is_mask = isinstance(inpt, tv_tensors.Mask)
        mode = InterpolationMode.NEAREST_EXACT if is_mask else InterpolationMode.BILINEAR
        # A plain tensor, because for a Mask torchvision would use NEAREST, off by half a pixel.
        tensor = F.crop_image(inpt.as_subclass(torch.Tensor), *params["box"])
        tensor = tensor.unsqueeze(0) if is_mask else tensor
        tensor = F.resize_image(tensor, params["size"], interpolation=mode, antialias=True)
        tensor = tensor.squeeze(0) if is_mask else tensor
        if any(params["padding"]):
            pad = F.pad_mask if is_mask else F.pad_image
            tensor = pad(tensor, params["padding"], fill=IGNORE if is_mask else FILL)
        return tv_tensors.wrap(tensor, like=inpt)


def train_transform(
    crop_size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    hflip: float = 0.5,
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0),
) -> v2.Compose:
    """Random scaling, padded random crop, horizontal flip and colour jitter.

    Args:
        crop_size: (height, width) of the result.
        scale: range of the scale factor; (1, 1) only crops.
        hflip: probability of a horizontal flip.
        color_jitter: largest change of brightness, contrast, saturation (relative) and hue (in
            turns, up to 0.5).

    Returns:
        A transform of (tv_tensors.Image, tv_tensors.Mask).
    """
    steps: list[v2.Transform] = [RandomScaledCrop(crop_size, scale)]
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if any(color_jitter):
        steps.append(ColorJitter(*color_jitter))
    return v2.Compose(steps)


def eval_transform(image_size: Sequence[int] | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A transform of images (3, H, W).

    Args:
        image_size: (height, width) of the result, or None to leave the image as it is.
    """
    if image_size is None:
        return torch.nn.Identity()
    return partial(F.resize, size=list(image_size), antialias=True)
