"""Cropping, flipping and recolouring whole clips, on uint8, at random from torch's generator alone.

A clip is (T, 3, H, W); whatever is drawn at random is drawn once for all of its frames. Conversion
to float and pixel scaling happen on the device: a worker sends a quarter of the bytes.
"""

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.colors import ColorJitter


class VideoColorJitter(ColorJitter):
    """The jitter of images, with one change of colours for all frames of a clip."""

    def transform(self, inpt: tv_tensors.Video, params: dict) -> tv_tensors.Video:
        """Change a clip as if its frames stood below each other in one image."""
        frames, channels, height, width = inpt.shape
        image = inpt.as_subclass(torch.Tensor).transpose(0, 1).reshape(channels, -1, width)
        changed = super().transform(tv_tensors.Image(image), params).as_subclass(torch.Tensor)
        changed = changed.reshape(channels, frames, height, width).transpose(0, 1)
        return tv_tensors.wrap(changed.contiguous(), like=inpt)


def train_transform(
    crop_size: tuple[int, int],
    area: tuple[float, float] | None,
    hflip: float,
    color_jitter: tuple[float, float, float, float],
) -> v2.Compose:
    """A random window of a clip, flipped and recoloured at random.

    Args:
        crop_size: (height, width) of the result.
        area: smallest and largest share of a frame that the window covers before it is resized to
            ``crop_size``; None for a window of ``crop_size``, at the clip's own scale.
        hflip: probability of a horizontal flip; 0 where classes differ in direction.
        color_jitter: largest change of brightness, contrast, saturation (relative) and hue (in
            turns, up to 0.5).

    Returns:
        A transform of a tv_tensors.Video.
    """
    steps: list[v2.Transform]
    if area:
        steps = [v2.RandomResizedCrop(crop_size, scale=area, antialias=True)]
    else:
        steps = [v2.RandomCrop(crop_size)]
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if any(color_jitter):
        steps.append(VideoColorJitter(*color_jitter))
    return v2.Compose(steps)


def cut_windows(clip: torch.Tensor, crop_size: tuple[int, int], count: int) -> torch.Tensor:
    """The middle of a clip, or windows along its longer side.

    Args:
        clip: (T, 3, H, W), no smaller than the windows.
        crop_size: (height, width) of a window.
        count: 1 or 3 windows.

    Returns:
        (count, T, 3, *crop_size).
    """
    height, width = crop_size
    room = clip.shape[-2] - height, clip.shape[-1] - width
    tall = clip.shape[-2] > clip.shape[-1]
    windows = []
    for place in [0.5] if count == 1 else [0.0, 0.5, 1.0]:
        top, left = (place, 0.5) if tall else (0.5, place)
        top, left = round(top * room[0]), round(left * room[1])
        windows.append(clip[..., top : top + height, left : left + width])
    return torch.stack(windows)
