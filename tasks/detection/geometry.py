"""The geometry of detection: where an image goes in a canvas of fixed size.

A window of the image is resampled and put somewhere in the canvas. A letterbox, a jittered crop
and the tile of a mosaic differ only in the window. Boxes use the window's exact factors, so they
stay on even the smallest objects.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

FILL = 114  # grey of the canvas
VISIBLE = 0.1  # share of a box's area that a window must show for the box to stay
SMALLEST = 1.0  # pixels of width and height that a box must have in the canvas

# {"image": tv_tensors.Image (3, H, W), "boxes": tv_tensors.BoundingBoxes XYXY float32 (N, 4),
#  "labels": int64 (N,), and maybe "masks": tv_tensors.Mask uint8 (N, H, W)}
Sample = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """A part of an image and its place in a canvas, all in pixels.

    Attributes:
        source: top, left, height and width in the image.
        result: height and width after resampling.
        offset: rows above it and columns left of it in the canvas.
        size: height and width of the canvas.
    """

    source: tuple[int, int, int, int]
    result: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Factors along x and y; they differ by the rounding to whole pixels."""
        return self.result[1] / self.source[3], self.result[0] / self.source[2]


def letterbox(image_size: tuple[int, int], size: tuple[int, int]) -> Window:
    """The whole image, as large as fits, in the middle of the canvas; sizes (height, width)."""
    factor = fit(image_size, size)
    result = tuple(
        min(most, max(1, round(length * factor)))
        for length, most in zip(image_size, size, strict=True)
    )
    offset = tuple((most - length) // 2 for length, most in zip(result, size, strict=True))
    return Window((0, 0, *image_size), result, offset, size)


def random_window(image_size: tuple[int, int], size: tuple[int, int], factor: float) -> Window:
    """A random window of the scaled image, at a random place in the canvas if it is smaller.

    Args:
        image_size: (height, width) of the image.
        size: (height, width) of the canvas.
        factor: by which the image is scaled.
    """
    rows, columns = (
        _span(length, most, factor) for length, most in zip(image_size, size, strict=True)
    )
    source = (rows[0], columns[0], rows[1], columns[1])
    return Window(source, (rows[2], columns[2]), (rows[3], columns[3]), size)


def _span(length: int, most: int, factor: float) -> tuple[int, int, int, int]:
    """Along one axis: first source pixel, source pixels, resulting pixels, padding before."""
    result = min(most, max(1, round(length * factor)))
    source = min(length, max(1, round(result / factor)))
    first = int(torch.randint(length - source + 1, ()))
    return first, source, result, int(torch.randint(most - result + 1, ()))


def fit(image_size: tuple[int, int], size: tuple[int, int]) -> float:
    """The largest factor at which the image fits into the canvas."""
    return min(size[0] / image_size[0], size[1] / image_size[1])


def cut(sample: Sample, window: Window) -> Sample:
    """A sample's window, on a canvas.

    An object is dropped if the window shows less than VISIBLE of it or less than a pixel, or if its
    mask vanishes.
    """
    image = _resample(sample["image"], window, InterpolationMode.BILINEAR, FILL)
    boxes, keep = _move(sample["boxes"], window)
    result = {"image": tv_tensors.Image(image)}
    if "masks" in sample:
        masks, keep = _cut_masks(sample["masks"].as_subclass(torch.Tensor), window, keep)
        result["masks"] = tv_tensors.Mask(masks)
    result["boxes"] = boxes_like(boxes[keep], window.size)
    result["labels"] = sample["labels"][keep]
    return result


def _cut_masks(
    masks: torch.Tensor, window: Window, keep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks to keep that still have a pixel, and the numbers of their objects."""
    if len(keep) < len(masks):  # indexing would copy them all
        masks = masks[keep]
    masks = _resample(masks, window, InterpolationMode.NEAREST_EXACT, 0)
    seen = masks.flatten(1).any(1).bool()
    return (masks, keep) if seen.all() else (masks[seen], keep[seen])


def boxes_like(boxes: torch.Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Corners (N, 4) as boxes that torchvision's transforms move along."""
    return tv_tensors.BoundingBoxes(boxes.reshape(-1, 4), format="XYXY", canvas_size=size)


def _resample(
    pixels: torch.Tensor, window: Window, mode: InterpolationMode, fill: int
) -> torch.Tensor:
    # As plain tensors, since torchvision resizes a Mask by NEAREST, which is off by half a pixel.
    if not len(pixels):  # no masks
        return pixels.new_empty(0, *window.size)
    pixels = F.crop_image(pixels.as_subclass(torch.Tensor), *window.source)
    if pixels.shape[-2:] != window.result:
        pixels = F.resize_image(pixels, list(window.result), interpolation=mode, antialias=True)
    if window.result == window.size:
        return pixels.contiguous()
    canvas = pixels.new_full((len(pixels), *window.size), fill)
    (above, before), (rows, columns) = window.offset, window.result
    canvas[:, above : above + rows, before : before + columns] = pixels
    return canvas


def _move(boxes: torch.Tensor, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in the canvas, clipped to the window, and the numbers of those that are seen."""
    top, left, _, _ = window.source
    (above, before), (rows, columns) = window.offset, window.result
    scale = torch.tensor(window.scale * 2, dtype=torch.float64)
    shift = torch.tensor([before, above] * 2, dtype=torch.float64)
    corners = boxes.as_subclass(torch.Tensor).double() - torch.tensor([left, top] * 2)
    whole = corners * scale + shift
    low, high = shift, shift + torch.tensor([columns, rows] * 2)
    moved = torch.minimum(torch.maximum(whole, low), high)
    seen = _area(moved) >= VISIBLE * _area(whole)
    large = ((moved[:, 2:] - moved[:, :2]) >= SMALLEST).all(1)
    return moved.float(), (seen & large).nonzero().flatten()


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def to_original(boxes: torch.Tensor, meta: dict[str, Any]) -> torch.Tensor:
    """Boxes in a letterboxed image, as boxes in the original one.

    Args:
        boxes: (N, 4) x0 y0 x1 y1 in pixels of the network's input.
        meta: an evaluation sample, or one image's part of a batch: "scale" (2,) along x and y,
            "offset" (2,) along x and y, "size" (2,) height and width.

    Returns:
        float64 (N, 4) x0 y0 x1 y1 in pixels of the original image, clipped to it.
    """
    scale, offset, size = (_as(meta[name], boxes) for name in ("scale", "offset", "size"))
    original = (boxes.double() - offset.repeat(2)) / scale.repeat(2)
    return torch.minimum(original.clamp(min=0), size.flip(0).repeat(2))


def to_letterbox(boxes: torch.Tensor, meta: dict[str, Any]) -> torch.Tensor:
    """The inverse of ``to_original``, for boxes in the original image: float64 (N, 4)."""
    scale, offset = (_as(meta[name], boxes) for name in ("scale", "offset"))
    return boxes.double() * scale.repeat(2) + offset.repeat(2)


def _as(value: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=boxes.device)
