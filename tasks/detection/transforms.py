"""Augmentation of pictures and their objects, on uint8, at random from torch's generator alone.

A transform of training is called with what reads samples, since it may mix several of them.
"""

from typing import Any, Protocol

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.colors import ColorJitter
from data.stream import SampleKey
from tasks.detection.geometry import Sample, cut, letterbox
from tasks.detection.mixing import copy_paste, jittered, mixup, mosaic


class Samples(Protocol):
    """What reads samples; ``tasks.detection.dataset.Reader`` does."""

    def sample(self, index: int) -> Sample:
        """The sample of an index."""

    def random_sample(self) -> Sample:
        """A sample drawn from torch's generator."""


class IoUCrop(v2.RandomIoUCrop):
    """SSD's crop, which leaves a picture without objects as it is.

    Boxes that it takes away become empty ones; ``cut``, which follows, drops them.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop."""
        boxes = next(x for x in flat_inputs if isinstance(x, tv_tensors.BoundingBoxes))
        return super().make_params(flat_inputs) if len(boxes) else {}


class TrainTransform:
    """Mosaic or a jittered crop, then copy-paste, mixup, flip and colours.

    Args:
        image_size: (height, width) of the result.
        scale_range: smallest and largest factor of the large-scale jitter, where 1 fits the picture
            into the result; (1, 1) only moves it.
        hflip: probability of a horizontal flip.
        color_jitter: largest change of brightness, contrast, saturation (relative) and hue (in
            turns, up to 0.5).
        iou_crop: probability of SSD's crop before the jitter (not in a mosaic).
        mosaic: probability of a mosaic of four samples.
        mixup: probability of another sample shining through.
        copy_paste: probability of pasting another sample's objects; needs masks.
        mosaic_until: position in the stream from which there is neither mosaic nor mixup; None:
            they never end.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 1.5),
        hflip: float = 0.5,
        color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.0),
        iou_crop: float = 0.0,
        mosaic: float = 0.0,
        mixup: float = 0.0,
        copy_paste: float = 0.0,
        mosaic_until: int | None = None,
    ) -> None:
        self.image_size = image_size
        self.scale_range = scale_range
        self.iou_crop = iou_crop
        self.mosaic = mosaic
        self.mixup = mixup
        self.copy_paste = copy_paste
        self.mosaic_until = mosaic_until
        self.crop = IoUCrop()
        self.flip = v2.RandomHorizontalFlip(hflip)
        colors = [ColorJitter(*color_jitter)] if any(color_jitter) else []
        self.finish = v2.Compose([self.flip, *colors])

    def __call__(self, samples: Samples, key: SampleKey) -> Sample:
        """An augmented sample; a function of torch's random state and the key.

        Args:
            samples: reads the sample of the key, and others that are mixed in.
            key: which sample, and its position in the stream.

        Returns:
            The sample at ``image_size``, without objects that have become smaller than a pixel.
        """
        sample, another = samples.sample(key.index), samples.random_sample
        mixing = self.mosaic_until is None or key.position < self.mosaic_until
        if mixing and _happens(self.mosaic):
            tiles = [sample, another(), another(), another()]
            sample = mosaic(tiles, self.image_size, self.scale_range)
        else:
            sample = self._placed(sample)
        if _happens(self.copy_paste):
            sample = copy_paste(sample, self.flip(self._placed(another())))
        if mixing and _happens(self.mixup):
            sample = mixup(sample, self._placed(another()))
        return self.finish(sample)

    def _placed(self, sample: Sample) -> Sample:
        if _happens(self.iou_crop):
            sample = self.crop(sample)
        return jittered(sample, self.image_size, self.scale_range)


def _happens(probability: float) -> bool:
    return probability > 0 and torch.rand(()).item() < probability


class EvalTransform:
    """The whole picture, as large as fits, in the middle of a canvas of fixed size.

    Args:
        image_size: (height, width) of the canvas.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size

    def __call__(self, sample: Sample) -> Sample:
        """Letterbox a sample.

        Returns:
            The sample with what ``geometry.to_original`` needs: size (height, width) of the
            original, scale and offset (both along x and y).
        """
        size = tuple(sample["image"].shape[-2:])
        window = letterbox(size, self.image_size)
        return cut(sample, window) | {
            "size": torch.tensor(size),
            "scale": torch.tensor(window.scale, dtype=torch.float64),
            "offset": torch.tensor(window.offset[::-1], dtype=torch.float64),
        }
