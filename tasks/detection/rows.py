"""Rows of detection data: the schema that every source fills, and which boxes are left out."""

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from data.decode import cell_name
from data.faults import Faults
from data.folders import EXAMPLES
from data.masks import Color
from errors import UserError
from tasks.detection.headers import Header, Size, read_headers
from tasks.detection.instance_masks import Outline, to_text
from tasks.detection.options import DetectionOptions

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


def make_data(
    options: DetectionOptions,
    splits: Sequence[Iterable[Annotated]],
    classes: Sequence[str],
    faults: Faults,
    notes: Sequence[str] = (),
) -> DetectionData:
    """A data set of the annotated images of both splits; see ``to_rows``."""
    rows, said = [], list(notes)
    for name, images in zip(("train", "val"), splits, strict=True):
        made, more = to_rows(images, classes, options, faults)
        rows.append(made)
        said += [f"{name}: {note}" for note in more]
    return DetectionData(*rows, list(classes), class_colors(len(classes)), tuple(said))


def to_rows(
    images: Iterable[Annotated], classes: Sequence[str], options: DetectionOptions, faults: Faults
) -> tuple[datasets.Dataset, list[str]]:
    """Rows of annotated images, without the boxes that can't be used.

    Every image's header is read: boxes are clipped to the image as it is, whatever size its
    annotation states. A box without area or outside the image is left out, and with masks an object
    without one too.

    Args:
        images: in the order of the rows.
        classes: names of the class ids.
        options: needs_masks, exif and skip_unlabelled.
        faults: gets the images whose boxes belong to the picture before it was turned.

    Returns:
        The rows, and notes for the user.
    """
    images, notes = list(images), []
    if options.skip_unlabelled:
        kept = [a for a in images if (bool(a.objects) if a.labelled is None else a.labelled)]
        if len(kept) < len(images):
            left = len(images) - len(kept)
            notes.append(f"{left} of {len(images)} images are left out, being unlabelled.")
        images = kept
    upright = options.exif == "turn"
    schema = features(classes)
    columns: dict[str, list[Any]] = {name: [] for name in schema}
    read = read_headers(annotated.image for annotated in images if annotated.header is None)
    turned = 0
    for number, annotated in enumerate(images):
        header = annotated.header or next(read)
        turned += header.turned
        with faults.of(cell_name(_cell(annotated.image), f"sample {number}")):
            _require_file(annotated, header)
            size, stated = _size(annotated, header, upright)
            kept, dropped = _clean(annotated, size, classes, options.needs_masks)
            columns["image"].append(annotated.image)
            columns["image_id"].append(number if annotated.image_id is None else annotated.image_id)
            columns["height"].append(size[0])
            columns["width"].append(size[1])
            columns["objects"].append(kept)
            columns["dropped"].append(dropped)
            columns["stated"].append(stated)
            columns["upright"].append(upright)
    if turned:
        are = "1 image has" if turned == 1 else f"{turned} images have"
        done = (
            "is heeded: give --exif ignore if the boxes were drawn on pictures that weren't turned"
            if upright
            else "is ignored (--exif)"
        )
        notes.append(f"{are} an EXIF orientation, which {done}.")
    return datasets.Dataset.from_dict(columns, features=schema), notes


def _cell(image: str | dict[str, Any]) -> dict[str, Any]:
    return image if isinstance(image, dict) else {"path": image}


def _require_file(annotated: Annotated, header: Header) -> None:
    """Refuse an image that is not there; a broken one is reported when it is decoded.

    Raises:
        UserError: there is no such file.
    """
    if header.stored == (0, 0) and isinstance(annotated.image, str) and annotated.image:
        path = Path(annotated.image)
        if not path.is_file():
            what = "is no regular file" if path.exists() else "is not there"
            raise UserError(
                f"{path} {what}, although it has annotations: restore it, or remove them."
            )


def _size(annotated: Annotated, header: Header, upright: bool) -> tuple[Size, str]:
    """The image's size, and the stated one as text where that is another.

    Raises:
        UserError: the stated size is that of the image before it was turned.
    """
    size, stated = header.upright if upright else header.stored, annotated.stated
    if not any(size):
        return stated or size, ""
    if stated is None or stated == size:
        return size, ""
    if upright and header.turned and stated == header.stored:
        name = cell_name(_cell(annotated.image), "An image")
        raise UserError(
            f"{name} is {size[1]}x{size[0]} pixels once it is turned as its EXIF orientation "
            f"says, but its annotation is of {stated[1]}x{stated[0]}, as before: try --exif ignore "
            "if the boxes are of pictures that weren't turned; else correct the annotation."
        )
    return size, f"{stated[1]}x{stated[0]}"


def _clean(
    annotated: Annotated, size: Size, classes: Sequence[str], with_masks: bool
) -> tuple[dict[str, list], list[str]]:
    kept: dict[str, list] = {
        name: [] for name in ("bbox", "category", "iscrowd", "area", "outline")
    }
    dropped = []
    if annotated.in_shares and not any(size):
        return kept, dropped  # an unreadable image is reported when it is decoded
    for number, entry in enumerate(annotated.objects, start=1):
        stored, outline = _in_pixels(entry, size) if annotated.in_shares else _boxed(entry)
        box, reason = clip_box(stored, size)
        drawn = to_text(outline, size) if with_masks and not reason else ""
        if with_masks and not drawn:
            reason = reason or "has no mask"
        if reason:
            dropped.append(f"box {number} ({classes[entry['category']]}) {reason}")
            continue
        kept["bbox"].append(box)
        kept["category"].append(entry["category"])
        kept["iscrowd"].append(int(entry["crowd"]))
        kept["area"].append(box[2] * box[3] if entry["area"] is None else float(entry["area"]))
        kept["outline"].append(drawn)
    return kept, dropped


def _boxed(entry: dict[str, Any]) -> tuple[Sequence[float], Outline]:
    box, outline = entry["box"], entry["outline"]
    return (around(outline) if box is None else box), outline


def _in_pixels(entry: dict[str, Any], size: Size) -> tuple[Sequence[float], Outline]:
    """The box and the polygons of an object that are shares of an image's width and height."""
    height, width = size
    outline = entry["outline"]
    if outline is not None:
        sides = (width, height)
        outline = [[v * sides[n % 2] for n, v in enumerate(points)] for points in outline]
    if entry["box"] is None:
        return around(outline), outline
    x, y, across, down = entry["box"]
    return (x * width, y * height, across * width, down * height), outline


def around(polygons: Sequence[Sequence[float]]) -> Box:
    """The box around polygons ``[[x, y, x, y, ...], ...]``."""
    xs = [x for points in polygons for x in points[::2]]
    ys = [y for points in polygons for y in points[1::2]]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


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
