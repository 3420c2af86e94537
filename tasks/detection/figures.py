"""Figures of detection: images with their boxes and masks, and precision-recall curves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from data.masks import Color
from figures.canvas import INK, PAPER, grid
from figures.sheet import IGNORED_COLOR
from tasks.detection.geometry import to_letterbox
from tasks.detection.metrics import RECALLS

# Of images with boxes.
LABEL_SIZE = 12  # height of the letters in pixels, at least
LINES = 40  # of a larger image that they would fill
LOW, HIGH = 256, 480  # lower images are enlarged to the first height, wider ones shrunk
DARK, LIGHT = (0, 0, 0), (255, 255, 255)

# Of precision-recall curves.
SMOOTH = 3  # they are drawn so many times as large and then shrunk, which smooths the lines
PLOT, MARGIN, LEGEND = 400, 56, 250  # pixels: side of the plot, room for the axes, for the legend
FONT_SIZE, ROW = 13, 17
GRID_COLOR = (222, 222, 222)
NAMED = 20  # classes in the legend at most
THIN, THICK = 1.5, 3  # widths of the lines of a class and of the mean


def detection_panel(
    image: torch.Tensor,
    truth: dict[str, Any],
    prediction: dict[str, Any],
    classes: Sequence[str],
    colors: Sequence[Color],
    min_score: float,
) -> torch.Tensor:
    """Image | truth | prediction side by side, for ``figures.sheet.contact_sheet``.

    Args:
        image: uint8 (3, h, w).
        truth: as ``draw_objects`` takes it, with the boxes in pixels of the image.
        prediction: the same, with "scores" (N,).
        classes: name of each class.
        colors: RGB of each class.
        min_score: detections with a lower score are not shown.

    Returns:
        uint8 (3, H, W).
    """
    shown = prediction["scores"] >= min_score
    found = {name: value[shown] for name, value in prediction.items()}
    image, factor = _scaled(image.cpu())
    drawn = [draw_objects(image, objects, classes, colors, factor) for objects in (truth, found)]
    return grid([image, *drawn], columns=3)


def with_crowds(sample: dict[str, Any]) -> dict[str, Any]:
    """The truth of an evaluation sample for ``detection_panel``: its targets, and the crowds.

    Crowds have boxes alone.
    """
    truth = sample["truth"]
    boxes = truth["boxes"][truth["iscrowd"] != 0]
    boxes = to_letterbox(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), sample)
    labels = truth["labels"][truth["iscrowd"] != 0]
    shown = {
        "boxes": torch.cat([boxes.to(sample["boxes"]), sample["boxes"]]),
        "labels": torch.cat([labels, sample["labels"]]),
        "iscrowd": torch.cat([torch.ones_like(labels), torch.zeros_like(sample["labels"])]),
    }
    if "masks" in sample:
        masks = sample["masks"]
        shown["masks"] = torch.cat([masks.new_zeros(len(labels), *masks.shape[1:]), masks])
    return shown


def drawn_truth(truth: dict[str, Any]) -> dict[str, Any]:
    """The truth in the original image, as ``Reader.read`` returns it, for ``detection_panel``."""
    boxes = truth["boxes"]
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return {"boxes": corners, "labels": truth["labels"], "iscrowd": truth["iscrowd"]}


def _scaled(image: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The image at a size that shows boxes and text, and the factor."""
    height, width = image.shape[1:]
    factor = max(1, -(-LOW // height)) if width < HIGH else HIGH / width
    if factor == 1:
        return image, 1.0
    mode = InterpolationMode.NEAREST_EXACT if factor > 1 else InterpolationMode.BILINEAR
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    return F.resize_image(image, size, interpolation=mode, antialias=True), float(factor)


def draw_objects(
    image: torch.Tensor,
    objects: dict[str, Any],
    classes: Sequence[str],
    colors: Sequence[Color],
    factor: float = 1.0,
) -> torch.Tensor:
    """Draw objects over an image, those of higher score on top, or without scores the smaller ones.

    Args:
        image: uint8 (3, H, W).
        objects: "boxes" (N, 4) x0 y0 x1 y1 and "labels" (N,); maybe "scores" (N,), "iscrowd" (N,),
            whose boxes are black, and "masks" (N, h, w), above one half inside an object.
        classes: name of each class.
        colors: RGB of each class.
        factor: from the boxes' and masks' pixels to the image's.

    Returns:
        uint8 (3, H, W).
    """
    sizes = objects["boxes"][:, 2:] - objects["boxes"][:, :2]
    order = objects.get("scores", -sizes.prod(1)).argsort(stable=True)
    objects = {name: value[order].cpu() for name, value in objects.items()}
    names = [classes[label] for label in objects["labels"].tolist()]
    inks = [tuple(colors[label]) for label in objects["labels"].tolist()]
    if "iscrowd" in objects:
        crowds = objects["iscrowd"].tolist()
        inks = [IGNORED_COLOR if crowd else ink for crowd, ink in zip(crowds, inks, strict=True)]
    if "scores" in objects:
        scores = objects["scores"].tolist()
        names = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    if "masks" in objects and names:
        inside = (objects["masks"] > 0.5).to(torch.uint8)
        inside = F.resize_image(inside, list(image.shape[1:]), InterpolationMode.NEAREST_EXACT)
        # Each pixel goes to the mask on top, since torchvision blackens those of several masks.
        from_here_on = inside.flip(0).cumsum(0, dtype=torch.int16).flip(0)
        on_top = inside.bool() & (from_here_on == 1)
        image = draw_segmentation_masks(image, on_top, alpha=0.5, colors=inks)
    canvas = F.to_pil_image(image)
    pen, letters = ImageDraw.Draw(canvas), max(LABEL_SIZE, min(canvas.size) // LINES)
    boxes = (objects["boxes"].double() * factor).round().int().tolist()
    for (left, top, right, bottom), ink in zip(boxes, inks, strict=True):
        # The edges are pixels of the object, so the last ones are one short of the far corner.
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle(corners, outline=ink, width=max(2, letters // 6))
    labels = zip(boxes, names, inks, strict=True)
    _draw_labels(pen, canvas.size, [*labels][::-1], letters)  # over all boxes, the best first
    return F.pil_to_tensor(canvas)


def _draw_labels(
    pen: ImageDraw.ImageDraw,
    canvas: tuple[int, int],
    labels: Sequence[tuple[Sequence[int], str, Color]],
    letters: int,
) -> None:
    """Write what each box is at the first free place of: above it, in it, below it, further down.

    A label that has no room without covering another is left out: its box is there.
    torchvision's ``draw_bounding_boxes`` writes into every box, which hides small objects, and
    beyond the border of the image; and without a font file its letters have one size.

    Args:
        pen: of the canvas.
        canvas: its width and height.
        labels: box, text and colour of each, the most important first.
        letters: their height in pixels.
    """
    font, taken, high = ImageFont.load_default(letters), [], letters + 2
    for (left, top, _, bottom), text, ink in labels:
        wide = round(font.getlength(text)) + 2
        x = max(0, min(left, canvas[0] - wide))
        places = (top - high, top, bottom, *range(top + high, canvas[1] - high, high))
        inside = (y for y in places if y >= 0 and (y + high <= canvas[1] or y == top))
        free = (y for y in inside if not _covers((x, y, x + wide, y + high), taken))
        y = next(free, None)
        if y is None:
            continue
        taken.append((x, y, x + wide, y + high))
        pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=ink)
        brightness = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2]
        color = DARK if brightness > 128 else LIGHT
        pen.text((x + 1, y + high / 2), text, fill=color, font=font, anchor="lm")


def _covers(place: Sequence[int], taken: Sequence[Sequence[int]]) -> bool:
    left, top, right, bottom = place
    return any(left < r and x < right and top < b and y < bottom for x, y, r, b in taken)


def pr_curves_figure(
    curves: Mapping[str, np.ndarray], ap50: Mapping[str, float], colors: Mapping[str, Color]
) -> torch.Tensor:
    """Precision over recall: a thin line per class, and the mean over the classes as a thick one.

    Args:
        curves: precision of each class at RECALLS; at least one class.
        ap50: average precision of each class at IoU 0.50, for the legend; the 20 highest are named.
        colors: RGB of each class.

    Returns:
        uint8 (3, H, W).
    """
    width, height = MARGIN + PLOT + LEGEND, PLOT + 2 * MARGIN
    canvas = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE * SMOOTH)
    _draw_axes(pen, font)
    for name, precision in curves.items():
        _draw_line(pen, map(_place, RECALLS, precision), colors[name], THIN)
    mean = np.mean(list(curves.values()), axis=0)
    _draw_line(pen, map(_place, RECALLS, mean), INK, THICK)
    _draw_legend(pen, font, ap50, colors)
    return F.pil_to_tensor(canvas.resize((width, height), Image.Resampling.BOX))


def _place(recall: float, precision: float) -> tuple[float, float]:
    return (MARGIN + recall * PLOT) * SMOOTH, (MARGIN + (1 - precision) * PLOT) * SMOOTH


def _draw_line(
    pen: ImageDraw.ImageDraw, points: Iterable[tuple[float, float]], color: Color, width: float
) -> None:
    pen.line(list(points), fill=tuple(color), width=round(width * SMOOTH), joint="curve")


def _draw_axes(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> None:
    gap = 6 * SMOOTH
    for tenth in range(0, 11, 2):
        value = tenth / 10
        pen.line((_place(value, 0), _place(value, 1)), fill=GRID_COLOR, width=SMOOTH)
        pen.line((_place(0, value), _place(1, value)), fill=GRID_COLOR, width=SMOOTH)
        x, y = _place(value, 0)
        pen.text((x, y + gap), f"{value:.1f}", fill=INK, font=font, anchor="mt")
        x, y = _place(0, value)
        pen.text((x - gap, y), f"{value:.1f}", fill=INK, font=font, anchor="rm")
    pen.rectangle((*_place(0, 1), *_place(1, 0)), outline=INK, width=SMOOTH)
    x, y = _place(0.5, 0)
    pen.text((x, y + 26 * SMOOTH), "recall", fill=INK, font=font, anchor="mt")
    x, y = _place(0, 1)
    pen.text((x, y - gap), "precision", fill=INK, font=font, anchor="mb")


def _draw_legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    ap50: Mapping[str, float],
    colors: Mapping[str, Color],
) -> None:
    names = sorted(ap50, key=lambda name: -ap50[name])
    entries = [(f"{sum(ap50.values()) / len(ap50):.3f}  mean of {len(ap50)}", INK, THICK)]
    entries += [(f"{ap50[name]:.3f}  {name}", colors[name], THIN) for name in names[:NAMED]]
    if len(names) > NAMED:
        entries.append((f"and {len(names) - NAMED} classes below", PAPER, THIN))
    left = (MARGIN + PLOT + 20) * SMOOTH
    pen.text((left + 26 * SMOOTH, (MARGIN - 6) * SMOOTH), "AP50", fill=INK, font=font, anchor="lb")
    for number, (text, color, width) in enumerate(entries):
        y = (MARGIN + (number + 0.5) * ROW) * SMOOTH
        _draw_line(pen, [(left, y), (left + 18 * SMOOTH, y)], color, width)
        pen.text((left + 26 * SMOOTH, y), text, fill=INK, font=font, anchor="lm")
