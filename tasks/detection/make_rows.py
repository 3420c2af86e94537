"""From annotated images to rows: sizes from headers, and which boxes are left out."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import pyarrow as pa

from data.decode import cell_name
from data.faults import Faults
from errors import UserError
from tasks.detection.headers import Header, Size, read_headers
from tasks.detection.instance_masks import Outline, to_text
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, Box, DetectionData, class_colors, features


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
        labelled = [a for a in images if (bool(a.objects) if a.labelled is None else a.labelled)]
        if left := len(images) - len(labelled):
            notes.append(f"{left} of {len(images)} images are left out, being unlabelled.")
        images = labelled
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
            columns["image"].append(_cell(annotated.image))
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
    # Arrow's own conversion: that of datasets looks at every number in Python.
    types = schema.arrow_schema
    arrays = {name: pa.array(values, types.field(name).type) for name, values in columns.items()}
    return datasets.Dataset.from_dict(arrays, features=schema), notes


def _cell(image: str | dict[str, Any]) -> dict[str, Any]:
    return image if isinstance(image, dict) else {"path": image}


def _require_file(annotated: Annotated, header: Header) -> None:
    """Refuse an image that is not there; a broken one is reported when it is decoded.

    Raises:
        UserError: there is no such file.
    """
    if header.stored == (0, 0) and isinstance(annotated.image, str) and annotated.image:
        path = annotated.image
        if not os.path.isfile(path):  # False for every name that can't be one
            what = "is no regular file" if os.path.exists(path) else "is not there"
            raise UserError(
                f"{path:.300} {what}, although it has annotations: restore it, or remove them."
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
    x, y, width, height = map(float, box)
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
