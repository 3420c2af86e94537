"""Augmentation of images and their objects, on uint8, random from torch's generator alone.

The training transform is called with a reader of samples, since it may mix several of them.
"""

from typing import Any, Protocol

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.colors import ColorJitter
from data.stream import SampleKey
from tasks.detection.geometry import Sample, cut, letterbox
from tasks.detection.mixing import copy_paste, jittered, mixup, mosaic
from tasks.detection.options import DetectionOptions


class Samples(Protocol):
    """A reader of samples, such as ``tasks.detection.dataset.Reader``."""

    def sample(self, index: int) -> Sample:
        """The sample of an index."""

    def random_sample(self) -> Sample:
        """A sample drawn from torch's generator."""


class IoUCrop(v2.RandomIoUCrop):
    """SSD's crop (arXiv:1512.02325), which leaves an image without objects as it is.

    Boxes outside the crop become empty; ``cut``, which follows, drops them.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop."""
        boxes = next(x for x in flat_inputs if isinstance(x, tv_tensors.BoundingBoxes))
        return super().make_params(flat_inputs) if len(boxes) else {}


class TrainTransform:
    """Mosaic or a jittered crop, then copy-paste, mixup, flip and colours.

    Args:
        options: image_size, and the options of the group augmentation.
        mosaic_until: position in the stream from which on there is neither mosaic nor mixup.
    """

    def __init__(self, options: DetectionOptions, mosaic_until: int) -> None:
        self.options, self.mosaic_until = options, mosaic_until
        self.size, self.scale_range = tuple(options.image_size), tuple(options.scale_range)
        self.crop = IoUCrop()
        self.flip = v2.RandomHorizontalFlip(options.hflip)
        colors = [ColorJitter(*options.color_jitter)] if any(options.color_jitter) else []
        self.finish = v2.Compose([self.flip, *colors])

    def __call__(self, samples: Samples, key: SampleKey) -> Sample:
        """An augmented sample; a function of torch's random state and the key.

        Args:
            samples: reads the sample of the key, and others that are mixed in.
            key: the sample's entry in the stream.

        Returns:
            The sample at the network's input size, without objects that have become smaller than a
            pixel.
        """
        sample, another = samples.sample(key.index), samples.random_sample
        mixing = key.position < self.mosaic_until
        if mixing and _happens(self.options.mosaic):
            tiles = [sample, another(), another(), another()]
            sample = mosaic(tiles, self.size, self.scale_range)
        else:
            sample = self._placed(sample)
        if _happens(self.options.copy_paste):
            sample = copy_paste(sample, self.flip(self._placed(another())))
        if mixing and _happens(self.options.mixup):
            sample = mixup(sample, self._placed(another()))
        return self.finish(sample)

    def _placed(self, sample: Sample) -> Sample:
        if _happens(self.options.iou_crop):
            sample = self.crop(sample)
        return jittered(sample, self.size, self.scale_range)


def _happens(probability: float) -> bool:
    return probability > 0 and torch.rand(()).item() < probability


class EvalTransform:
    """The whole image, as large as fits, in the middle of a canvas of fixed size.

    Args:
        image_size: (height, width) of the canvas.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size

    def __call__(self, sample: Sample) -> Sample:
        """Letterbox a sample.

        Returns:
            The sample with what ``geometry.to_original`` needs: "size" (2,) height and width of
            the original, "scale" (2,) and "offset" (2,), both along x and y.
        """
        size = tuple(sample["image"].shape[-2:])
        window = letterbox(size, self.image_size)
        return cut(sample, window) | {
            "size": torch.tensor(size),
            "scale": torch.tensor(window.scale, dtype=torch.float64),
            "offset": torch.tensor(window.offset[::-1], dtype=torch.float64),
        }
