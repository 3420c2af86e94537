"""Augmentation of images to classify, on uint8, at random from torch's generator alone.

Conversion to float and pixel scaling happen on the device: a worker sends a quarter of the bytes.
"""

import math
from typing import Any, Literal

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.colors import FILL, ColorJitter

AUTO_AUGMENT = {
    "none": None,
    "rand_augment": v2.RandAugment,  # https://arxiv.org/abs/1909.13719
    "trivial_augment": v2.TrivialAugmentWide,  # https://arxiv.org/abs/2103.10158
}


def train_transform(
    image_size: tuple[int, int],
    scale: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    auto_augment: Literal["none", "rand_augment", "trivial_augment"] = "none",
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    erasing: float = 0.0,
    random_crop: int | None = None,
) -> v2.Compose:
    """Random crop, flip, photometric changes and erasing.

    Args:
        image_size: (height, width) of the result.
        scale: smallest and largest share of the image's area in a crop.
        ratio: smallest and largest width / height of a crop.
        hflip: probability of a horizontal flip.
        auto_augment: a policy of further random operations.
        color_jitter: largest change of brightness, contrast, saturation (relative) and hue (in
            turns, up to 0.5).
        erasing: probability that a window is erased (https://arxiv.org/abs/1708.04896).
        random_crop: instead of cutting resized crops, pad the whole image by so many pixels and
            shift the window: for images as small as CIFAR's.

    Returns:
        A transform of a tv_tensors.Image.
    """
    steps: list[v2.Transform]
    if random_crop is None:
        steps = [v2.RandomResizedCrop(image_size, scale, ratio, antialias=True)]
    else:
        steps = [
            v2.Resize(image_size, antialias=True),
            v2.RandomCrop(image_size, padding=random_crop, fill=FILL),
        ]
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if policy := AUTO_AUGMENT[auto_augment]:
        steps.append(policy(interpolation=v2.InterpolationMode.BILINEAR, fill=FILL))
    if any(color_jitter):
        steps.append(ColorJitter(*color_jitter))
    if erasing:
        steps.append(v2.RandomErasing(erasing, value=FILL))
    return v2.Compose(steps)


def eval_transform(image_size: tuple[int, int], crop_ratio: float = 0.875) -> v2.Compose:
    """Resize the image, keeping its proportions, and cut out the middle.

    Args:
        image_size: (height, width) of the result.
        crop_ratio: side of the result over that of the resized image; 0.875 (224 of 256) where
            training takes resized crops, 1 where it sees whole images.

    Returns:
        A transform of a tv_tensors.Image.
    """
    covered = tuple(math.floor(side / crop_ratio) for side in image_size)
    return v2.Compose([ResizeToCover(covered), v2.CenterCrop(image_size)])


class ResizeToCover(v2.Transform):
    """Resize an image to the smallest size that covers ``size``, keeping its proportions.

    For a square this is torchvision's Resize to a number.

    Args:
        size: (height, width).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> torch.Tensor:
        """Resize one image (3, H, W)."""
        height, width = F.get_size(inpt)
        wanted_height, wanted_width = self.size
        if wanted_height * width >= wanted_width * height:
            wanted_width = wanted_height * width // height
        else:
            wanted_height = wanted_width * height // width
        return F.resize(inpt, [wanted_height, wanted_width], antialias=True)
