"""Pictures of detections to look at: boxes, labels, scores and masks in class colours."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from data.masks import Color
from figures.sheet import GAP, IGNORED_COLOR, PAPER
from tasks.detection.geometry import to_letterbox

FONT_SIZE = 12
LOW, HIGH = 256, 480  # smaller pictures are enlarged to the first height, wider ones shrunk
DARK, LIGHT = (0, 0, 0), (255, 255, 255)


def detection_panel(
    image: torch.Tensor,
    truth: dict[str, Any],
    prediction: dict[str, Any],
    classes: Sequence[str],
    colors: Sequence[Color],
    min_score: float = 0.3,
) -> torch.Tensor:
    """Image | truth | prediction side by side, for ``figures.sheet.contact_sheet``.

    Args:
        image: uint8 (3, h, w).
        truth: "boxes" (N, 4) x0 y0 x1 y1 in pixels of the image and "labels" (N,); maybe "iscrowd"
            (N,), shown black, and "masks" (N, h, w).
        prediction: the same with "scores" (N,).
        classes: name of each class.
        colors: RGB of each class.
        min_score: detections below it are not shown.

    Returns:
        uint8 (3, H, W).
    """
    shown = prediction["scores"] >= min_score
    found = {name: value[shown] for name, value in prediction.items()}
    plain, factor = _scaled(image.cpu())
    parts = [
        plain,
        draw_objects(plain, truth, classes, colors, factor),
        draw_objects(plain, found, classes, colors, factor),
    ]
    gap = torch.tensor(PAPER, dtype=torch.uint8)[:, None, None].expand(3, plain.shape[1], GAP)
    return torch.cat([parts[0], gap, parts[1], gap, parts[2]], dim=2)


def with_crowds(sample: dict[str, Any]) -> dict[str, Any]:
    """The truth of an evaluation sample for ``detection_panel``: its targets, and the crowds.

    Of crowds the boxes alone are shown, below the others.
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
    """Draw objects over an image, those of higher score on top.

    Args:
        image: uint8 (3, H, W).
        objects: "boxes" (N, 4) x0 y0 x1 y1 and "labels" (N,); maybe "scores", "iscrowd" (N,) and
            "masks" (N, h, w), above one half inside an object.
        classes: name of each class.
        colors: RGB of each class.
        factor: from the boxes' and masks' pixels to the image's.

    Returns:
        uint8 (3, H, W).
    """
    labels = objects["labels"].tolist()
    crowds = objects.get("iscrowd", torch.zeros(len(labels))).tolist()
    inks = [
        IGNORED_COLOR if crowd else tuple(colors[label])
        for label, crowd in zip(labels, crowds, strict=True)
    ]
    masks = objects.get("masks")
    if masks is not None and len(masks):
        masks = F.resize_image(
            (masks.cpu() > 0.5).to(torch.uint8),
            list(image.shape[1:]),
            InterpolationMode.NEAREST_EXACT,
        )
        image = draw_segmentation_masks(image, masks.bool(), alpha=0.5, colors=inks)
    canvas = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    scores = objects["scores"].tolist() if "scores" in objects else None
    order = (
        range(len(labels)) if scores is None else sorted(range(len(labels)), key=scores.__getitem__)
    )
    boxes = (objects["boxes"].cpu().double() * factor).tolist()
    for number in order:
        text = classes[labels[number]] + ("" if scores is None else f" {scores[number]:.2f}")
        _draw_box(pen, font, boxes[number], text, inks[number], canvas.width)
    return F.pil_to_tensor(canvas)


def _draw_box(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    box: Sequence[float],
    text: str,
    ink: Color,
    canvas_width: int,
) -> None:
    # The edges are pixels of the object, so its last ones are one short of the box's far corner.
    left, top = round(box[0]), round(box[1])
    right, bottom = max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)
    pen.rectangle((left, top, right, bottom), outline=ink, width=2)
    most_left = canvas_width - font.getlength(text)
    start = (max(0, min(left, most_left)), top - FONT_SIZE - 1 if top > FONT_SIZE else max(0, top))
    brightness = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2]
    pen.rectangle(pen.textbbox(start, text, font=font), fill=ink)
    pen.text(start, text, fill=DARK if brightness > 128 else LIGHT, font=font)
