"""Making one sample from several: mosaic, mixup and copy-paste."""

from collections.abc import Sequence

import torch
from torchvision import tv_tensors

from tasks.detection.geometry import Sample, boxes_like, cut, fit, random_window
from tasks.detection.instance_masks import tight_boxes

HIDDEN = 0.75  # an object of which pasted ones hide more than this share is dropped
MIXING = 32.0  # both parameters of mixup's Beta distribution: about half of each image


def jittered(
    sample: Sample,
    size: tuple[int, int],
    scale: tuple[float, float],
    canvas: tuple[int, int] | None = None,
) -> Sample:
    """Large-scale jitter (arXiv:2012.07177): scaled at random, cropped or padded.

    Args:
        sample: a sample of any size.
        size: (height, width) of the result.
        scale: smallest and largest factor, where 1 fits the image into ``size``; uniform in its
            logarithm, so that halving is as likely as doubling.
        canvas: (height, width) of the result where it is only a part of ``size``.
    """
    image_size = tuple(sample["image"].shape[-2:])
    low, high = torch.tensor(scale, dtype=torch.float64).log().tolist()
    factor = torch.empty((), dtype=torch.float64).uniform_(low, high).exp().item()
    window = random_window(image_size, canvas or size, factor * fit(image_size, size))
    return cut(sample, window)


def mosaic(samples: Sequence[Sample], size: tuple[int, int], scale: tuple[float, float]) -> Sample:
    """Four samples around a random point (arXiv:2004.10934).

    A tile shows a part of its image at the scale that the image would have alone.

    Args:
        samples: four, for top left, top right, bottom left and bottom right.
        size: (height, width) of the result.
        scale: as in ``jittered``.
    """
    height, width = size
    row, column = (
        round(length * share)
        for length, share in zip(size, torch.empty(2).uniform_(0.25, 0.75).tolist(), strict=True)
    )
    image = torch.empty(3, height, width, dtype=torch.uint8)
    tiles = []
    for number, sample in enumerate(samples):
        top, bottom = ((0, row), (row, height))[number // 2]
        left, right = ((0, column), (column, width))[number % 2]
        tile = jittered(sample, size, scale, (bottom - top, right - left))
        image[:, top:bottom, left:right] = tile["image"]
        tile["boxes"] = tile["boxes"].as_subclass(torch.Tensor) + torch.tensor([left, top] * 2)
        if "masks" in tile:
            masks = torch.zeros(len(tile["masks"]), height, width, dtype=torch.uint8)
            masks[:, top:bottom, left:right] = tile["masks"]
            tile["masks"] = masks
        tiles.append(tile)
    return _joined(image, tiles)


def mixup(first: Sample, second: Sample) -> Sample:
    """Two samples of one size over each other, with the objects of both (arXiv:1902.04103)."""
    share = torch.distributions.Beta(MIXING, MIXING).sample().item()
    pixels = (sample["image"].as_subclass(torch.Tensor).float() for sample in (first, second))
    image = torch.lerp(*pixels, 1 - share).round_().to(torch.uint8)
    return _joined(image, [first, second])


def copy_paste(onto: Sample, source: Sample) -> Sample:
    """Objects of one sample pasted over another of the same size (arXiv:2012.07177).

    Each object of ``source`` is taken with probability one half. Objects of ``onto`` lose what is
    now hidden, and their boxes shrink to what is left; those mostly hidden are dropped. Both
    samples must have masks.
    """
    taken = torch.rand(len(source["labels"])) < 0.5
    pasted = source["masks"].as_subclass(torch.Tensor)[taken]
    cover = pasted.any(0).bool()
    pixels = (sample["image"].as_subclass(torch.Tensor) for sample in (source, onto))
    image = torch.where(cover, *pixels)

    masks, boxes = (onto[name].as_subclass(torch.Tensor) for name in ("masks", "boxes"))
    left = masks * ~cover
    before, after = masks.flatten(1).sum(1), left.flatten(1).sum(1)
    cropped = after < before
    boxes = torch.where(cropped[:, None], tight_boxes(left).to(boxes.dtype), boxes)
    keep = after > (1 - HIDDEN) * before
    behind = {"boxes": boxes[keep], "labels": onto["labels"][keep], "masks": left[keep]}
    above = {
        "boxes": source["boxes"].as_subclass(torch.Tensor)[taken],
        "labels": source["labels"][taken],
        "masks": pasted,
    }
    return _joined(image, [behind, above])


def _joined(image: torch.Tensor, parts: Sequence[Sample]) -> Sample:
    """A sample of an image and the objects of several samples."""
    boxes = torch.cat([part["boxes"].as_subclass(torch.Tensor) for part in parts])
    joined = {
        "image": tv_tensors.Image(image),
        "boxes": boxes_like(boxes, tuple(image.shape[-2:])),
        "labels": torch.cat([part["labels"] for part in parts]),
    }
    if all("masks" in part for part in parts):
        masks = [part["masks"].as_subclass(torch.Tensor) for part in parts]
        joined["masks"] = tv_tensors.Mask(torch.cat(masks))
    return joined
