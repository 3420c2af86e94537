"""Rows of detection data: the schema that every source fills, and which boxes are left out."""

import colorsys
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from PIL import Image

from data.decode import cell_name
from data.masks import Color
from tasks.detection.instance_masks import Outline, to_text

ORIENTATION = 0x0112  # EXIF tag; from 5 on, width and height change places
EXAMPLES = 3  # files that a note names


@dataclass(frozen=True)
class DetectionData:
    """A detection data set.

    Attributes:
        train: rows as ``features`` describes them.
        val: the same for evaluation.
        classes: names of the class ids 0..n-1.
        colors: an RGB triple per class, to draw it in.
        notes: sentences about choices made here that a user should see.
    """

    train: datasets.Dataset
    val: datasets.Dataset
    classes: list[str]
    colors: list[Color]
    notes: tuple[str, ...] = ()


@dataclass
class Annotated:
    """An image and its objects, as a source describes them.

    Attributes:
        image: path, or a cell ``{"path", "bytes"}``.
        size: (height, width) in pixels; None where the source doesn't say.
        image_id: number of the image; None for its position.
        objects: see ``add``.
    """

    image: str | dict[str, Any]
    size: tuple[int, int] | None
    image_id: int | None = None
    objects: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        box: Sequence[float],
        category: int,
        crowd: bool = False,
        area: float | None = None,
        outline: Outline = None,
    ) -> None:
        """Add an object.

        Args:
            box: x, y, width, height in pixels.
            category: class id.
            crowd: whether training leaves it out and evaluation ignores it.
            area: of its mask in pixels; None for the box's.
            outline: polygons or run lengths as in COCO.
        """
        self.objects.append(
            {"box": box, "category": category, "crowd": crowd, "area": area, "outline": outline}
        )


def features(classes: Sequence[str]) -> datasets.Features:
    """The schema of the rows.

    Boxes are x, y, width, height in pixels (float64, clipped to the image), areas in pixels;
    ``outline`` is the JSON of instance_masks.py; ``dropped`` says why a box was left out.
    """
    return datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "image_id": datasets.Value("int64"),
            "height": datasets.Value("int32"),
            "width": datasets.Value("int32"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=list(classes))),
                "iscrowd": datasets.List(datasets.Value("int8")),
                "area": datasets.List(datasets.Value("float64")),
                "outline": datasets.List(datasets.Value("string")),
            },
            "dropped": datasets.List(datasets.Value("string")),
        }
    )


def to_rows(
    images: Iterable[Annotated], classes: Sequence[str], with_masks: bool
) -> datasets.Dataset:
    """Rows of annotated images, without the boxes that can't be used.

    Boxes are clipped to their image. A box without area or outside the image is left out, and
    with masks an object without one too.

    Args:
        images: in the order of the rows.
        classes: names of the class ids.
        with_masks: keep the outlines.
    """
    schema = features(classes)
    columns: dict[str, list[Any]] = {name: [] for name in schema}
    for number, annotated in enumerate(images):
        size = annotated.size or stored_size(annotated.image)
        kept, dropped = _clean(annotated.objects, size, classes, with_masks)
        columns["image"].append(annotated.image)
        columns["image_id"].append(number if annotated.image_id is None else annotated.image_id)
        columns["height"].append(size[0])
        columns["width"].append(size[1])
        columns["objects"].append(kept)
        columns["dropped"].append(dropped)
    return datasets.Dataset.from_dict(columns, features=schema)


def _clean(
    objects: list[dict[str, Any]], size: tuple[int, int], classes: Sequence[str], with_masks: bool
) -> tuple[dict[str, list], list[str]]:
    kept: dict[str, list] = {
        name: [] for name in ("bbox", "category", "iscrowd", "area", "outline")
    }
    dropped = []
    for number, entry in enumerate(objects, start=1):
        box, reason = clip_box(entry["box"], size)
        outline = to_text(entry["outline"], size) if with_masks and not reason else ""
        if with_masks and not outline:
            reason = reason or "has no mask"
        if reason:
            dropped.append(f"box {number} ({classes[entry['category']]}) {reason}")
            continue
        kept["bbox"].append(box)
        kept["category"].append(entry["category"])
        kept["iscrowd"].append(int(entry["crowd"]))
        kept["area"].append(box[2] * box[3] if entry["area"] is None else float(entry["area"]))
        kept["outline"].append(outline)
    return kept, dropped


def clip_box(box: Sequence[float], size: tuple[int, int]) -> tuple[list[float], str]:
    """A box x, y, width, height clipped to an image, and why it can't be used ("" if it can).

    Args:
        box: in pixels.
        size: (height, width); (0, 0) where it couldn't be read: nothing is clipped.
    """
    x, y, width, height = (float(value) for value in box)
    if not math.isfinite(x + y + width + height):
        return [0.0] * 4, "holds a value that is not a number"
    if width <= 0 or height <= 0:
        return [x, y, width, height], "has no area"
    if not any(size) or (x >= 0 and y >= 0 and x + width <= size[1] and y + height <= size[0]):
        return [x, y, width, height], ""  # untouched: clipping would round
    left, top = max(x, 0.0), max(y, 0.0)
    width, height = min(x + width, size[1]) - left, min(y + height, size[0]) - top
    outside = width <= 0 or height <= 0
    return [left, top, width, height], "lies outside the image" if outside else ""


def stored_size(image: str | dict[str, Any]) -> tuple[int, int]:
    """(height, width) from the file's header, upright as its EXIF orientation says.

    (0, 0) if it can't be read: the image is reported with its name when it is decoded.
    """
    cell = image if isinstance(image, dict) else {"path": image, "bytes": None}
    try:
        file = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
        with Image.open(file) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ORIENTATION, 1) >= 5
    except Exception:  # Pillow raises many types for broken files
        return 0, 0
    return (width, height) if turned else (height, width)


def dropped_boxes_note(split: str, rows: datasets.Dataset) -> tuple[str, ...]:
    """A sentence on the boxes that were left out, if there are any."""
    numbers = [number for number, dropped in enumerate(rows["dropped"][:]) if dropped]
    if not numbers:
        return ()
    count = sum(len(rows[number]["dropped"]) for number in numbers)
    examples = [cell_name(rows[n]["image"], f"sample {n}") for n in numbers[:EXAMPLES]]
    more = " and others" if len(numbers) > EXAMPLES else ""
    boxes = "1 box that can't be used is" if count == 1 else f"{count} boxes that can't be used are"
    return (f"{split}: {boxes} left out, in {', '.join(examples)}{more}: --check_data says why.",)


def class_colors(count: int) -> list[Color]:
    """Vivid colours for classes 0..count-1: the hue advances by the golden ratio of a turn."""
    shades = ((0.8, 0.95), (0.6, 1.0), (0.95, 0.75))  # saturation and value, in turn
    colors = []
    for number in range(count):
        rgb = colorsys.hsv_to_rgb(number * 0.618034 % 1, *shades[number % len(shades)])
        colors.append(tuple(round(255 * channel) for channel in rgb))
    return colors
