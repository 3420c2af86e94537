"""Rows of detection data: the schema, what a source fills it from, and notes on the rows."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from data.decode import cell_name
from data.masks import Color
from data.notes import EXAMPLES
from tasks.detection.headers import Header, Size
from tasks.detection.instance_masks import Outline

Box = tuple[float, float, float, float]  # x, y, width and height


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
        stated: (height, width) in pixels that the annotation gives; None where it gives none.
        image_id: number of the image; None for its position.
        in_shares: whether boxes and outlines are shares of the image's width and height.
        labelled: whether somebody has looked for objects in it; None where only objects tell.
        header: of the image's file; None to have it read.
        objects: see ``add``.
    """

    image: str | dict[str, Any]
    stated: Size | None = None
    image_id: int | None = None
    in_shares: bool = False
    labelled: bool | None = None
    header: Header | None = None
    objects: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        box: Sequence[float] | None,
        category: int,
        crowd: bool = False,
        area: float | None = None,
        outline: Outline = None,
    ) -> None:
        """Add an object.

        Args:
            box: x, y, width, height in pixels; None for the box around the outline, which must
                then be polygons.
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
    ``outline`` is the JSON of instance_masks.py; ``dropped`` says why a box was left out;
    ``stated`` is the annotation's size, as 640x480, where the image has another; ``upright`` tells
    whether the image is turned as its EXIF orientation says.
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
            "stated": datasets.Value("string"),
            "upright": datasets.Value("bool"),
        }
    )


def notes_on(split: str, rows: datasets.Dataset) -> tuple[str, ...]:
    """Sentences on the boxes that were left out, and on images of another size than stated."""
    dropped, stated = rows["dropped"][:], rows["stated"][:]
    notes = []
    if count := sum(map(len, dropped)):
        boxes = (
            "1 box that can't be used is" if count == 1 else f"{count} boxes that can't be used are"
        )
        where = _examples(rows, [number for number, reasons in enumerate(dropped) if reasons])
        notes.append(f"{split}: {boxes} left out, in {where}: --check_data says why.")
    if numbers := [number for number, size in enumerate(stated) if size]:
        has = "1 image has" if len(numbers) == 1 else f"{len(numbers)} images have"
        notes.append(
            f"{split}: {has} another size than the annotation states, and boxes count in the "
            f"image's own pixels: {_examples(rows, numbers)}."
        )
    return tuple(notes)


def _examples(rows: datasets.Dataset, numbers: Sequence[int]) -> str:
    names = [cell_name(rows[n]["image"], f"sample {n}") for n in numbers[:EXAMPLES]]
    return ", ".join(names) + (" and others" if len(numbers) > EXAMPLES else "")


def class_colors(count: int) -> list[Color]:
    """Vivid colours for classes 0..count-1: the hue advances by the golden ratio of a turn."""
    shades = ((0.8, 0.95), (0.6, 1.0), (0.95, 0.75))  # saturation and value, in turn
    colors = []
    for number in range(count):
        rgb = colorsys.hsv_to_rgb(number * 0.618034 % 1, *shades[number % len(shades)])
        colors.append(tuple(round(255 * channel) for channel in rgb))
    return colors
