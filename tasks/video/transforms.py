"""Cropping, flipping and recolouring whole clips, on uint8, at random from torch's generator alone.

A clip is a ``tv_tensors.Video`` (T, 3, H, W); whatever is drawn at random is drawn once for all of
its frames. Conversion to float and normalisation belong to the device.
"""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.colors import ColorJitter
from errors import UserError


class VideoColorJitter(ColorJitter):
    """The jitter of images, with one change of colours for all frames of a clip."""

    def transform(self, inpt: tv_tensors.Video, params: dict) -> tv_tensors.Video:
        """Change a clip as if its frames stood below each other in one picture."""
        frames, channels, height, width = inpt.shape
        picture = inpt.as_subclass(torch.Tensor).transpose(0, 1).reshape(channels, -1, width)
        changed = super().transform(tv_tensors.Image(picture), params).as_subclass(torch.Tensor)
        changed = changed.reshape(channels, frames, height, width).transpose(0, 1)
        return tv_tensors.wrap(changed.contiguous(), like=inpt)


class TrainTransform:
    """A random window of a randomly scaled clip, flipped and recoloured at random.

    Args:
        crop_size: (height, width) of the result.
        short_side: smallest and largest length, in pixels, to which the shorter side is resized
            before a window of ``crop_size`` is cut out.
        area: instead of ``short_side``: smallest and largest share of the picture that the window
            covers, before it is resized to ``crop_size``.
        hflip: probability of a horizontal flip; 0 where classes differ in direction.
        color_jitter: largest change of brightness, contrast, saturation (relative) and hue (in
            turns, up to 0.5).

    Raises:
        UserError: the short side can be less than the window.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        short_side: tuple[int, int],
        area: tuple[float, float] | None = None,
        hflip: float = 0.5,
        color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> None:
        self.short_side = None if area else short_side
        steps: list[v2.Transform] = []
        if area:
            steps.append(v2.RandomResizedCrop(crop_size, scale=area, antialias=True))
        else:
            _check_sizes(short_side, crop_size)
            steps.append(v2.RandomCrop(crop_size))
        if hflip:
            steps.append(v2.RandomHorizontalFlip(hflip))
        if any(color_jitter):
            steps.append(VideoColorJitter(*color_jitter))
        self.steps = v2.Compose(steps)

    def draw_short_side(self) -> int | None:
        """The length to which the reader shall resize the shorter side; None for as it is."""
        if self.short_side is None:
            return None
        low, high = self.short_side
        return int(torch.randint(low, high + 1, ()))

    def __call__(self, clip: tv_tensors.Video) -> torch.Tensor:
        """A clip (T, 3, H, W) to the window (T, 3, *crop_size)."""
        return self.steps(clip).as_subclass(torch.Tensor)


class EvalTransform:
    """The middle of a clip, or three windows along its longer side.

    Args:
        short_side: pixels to which the shorter side is resized.
        crop_size: (height, width) of a window.
        crops: 1 or 3 windows.

    Raises:
        UserError: the number of windows is another, or the short side is less than the window.
    """

    def __init__(self, short_side: int, crop_size: tuple[int, int], crops: int = 1) -> None:
        _check_sizes((short_side, short_side), crop_size)
        if crops not in (1, 3):
            raise UserError(f"A clip is evaluated in 1 or 3 windows, not in {crops}.")
        self.short_side, self.crop_size, self.crops = short_side, crop_size, crops

    def __call__(self, clip: tv_tensors.Video) -> torch.Tensor:
        """A clip (T, 3, H, W) to windows (crops, T, 3, *crop_size)."""
        room = [have - want for have, want in zip(clip.shape[-2:], self.crop_size, strict=True)]
        places = [0.5] if self.crops == 1 else [0.0, 0.5, 1.0]
        vertical = clip.shape[-2] > clip.shape[-1]
        windows = []
        for place in places:
            top, left = (place, 0.5) if vertical else (0.5, place)
            corner = round(top * room[0]), round(left * room[1])
            windows.append(F.crop(clip, *corner, *self.crop_size).as_subclass(torch.Tensor))
        return torch.stack(windows)


def _check_sizes(short_side: tuple[int, int], crop_size: tuple[int, int]) -> None:
    low, high = short_side
    if not max(crop_size) <= low <= high:
        raise UserError(
            f"Windows of {crop_size[0]}x{crop_size[1]} don't fit into videos whose shorter side is "
            f"{low} to {high} pixels: the window must be the smaller, and the range ascend."
        )
