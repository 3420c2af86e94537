"""Detection data from the Hugging Face hub, or from a local copy in its formats."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa

from data.faults import Faults
from data.hub import Media, hub_name, open_hub, require_columns, select_media
from errors import UserError
from tasks.detection.formats.reading import (
    area,
    box,
    flag,
    given_class_names,
    identity,
    pixels,
    read_each,
)
from tasks.detection.headers import Header, read_headers
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, Box, DetectionData

BOXES = ("bbox", "bboxes", "boxes", "box")
CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "classes")
CROWDS = ("iscrowd", "is_crowd", "difficult")
FIELDS = (BOXES, CATEGORIES, CROWDS, ("area", "areas"))


def _xyxy(box: Sequence[float]) -> Box:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def _centred(box: Sequence[float]) -> Box:
    x, y, width, height = box
    return x - width / 2, y - height / 2, width, height


BOX_FORMATS: dict[str, Callable[[Sequence[float]], Box]] = {
    "coco": tuple,
    "voc": _xyxy,
    "yolo": _centred,  # shares of the image's width and height
}


def load_hub(options: DetectionOptions, faults: Faults) -> DetectionData:
    """A data set of the hub, or a local copy of one; without masks, which have no common form.

    The classes are ``--class_names``, or those of the column's ClassLabel, or else the numbers or
    texts that occur.

    Raises:
        UserError: it can't be loaded, or the columns don't hold images and objects.
    """
    name, image_column = hub_name(options.dataset), options.image_column
    objects_column = options.objects_column
    train, val, notes = open_hub(options, options.image_column)
    splits = []
    media = Media("image", datasets.Image(decode=False), "images", "--image_column")
    for rows in (train, val):
        require_columns(rows, name, {"--objects_column": objects_column})
        images = select_media(rows, name, (media, image_column))
        splits.append((images, rows.remove_columns(image_column)))
    objects = [_objects(rows, name, objects_column, faults) for _, rows in splits]
    sizes = [_stated(rows, name, faults) for _, rows in splits]
    faults.stop_if_any()  # the objects no longer belong to the images
    given = given_class_names(options, numbered=True)
    classes, ids = _classes(train, name, objects_column, given, objects)
    convert, in_shares = BOX_FORMATS[options.bbox_format], options.bbox_format == "yolo"
    annotated = [
        _annotated(found, read_headers(_cells(images)), stated, ids, convert, in_shares)
        for (images, _), found, stated in zip(splits, objects, sizes, strict=True)
    ]
    made = make_data(options, annotated, classes, faults, notes)
    faults.stop_if_any()
    done, notes = [], made.notes
    for (images, _), rows, found in zip(splits, (made.train, made.val), objects, strict=True):
        # Side by side, so that the images stay where they are on the disk.
        joined = datasets.concatenate_datasets([images, rows.remove_columns("image")], axis=1)
        if options.skip_unlabelled:
            kept = [number for number, objects in enumerate(found) if objects]
            notes += (
                f"{len(found) - len(kept)} of {len(found)} images are left out, being unlabelled.",
            )
            joined = joined.select(kept)
        done.append(joined)
    return replace(made, train=done[0], val=done[1], notes=notes)


# Of each row, for each object: box, category, whether it is a crowd, and area if it is given.
Objects = list[list[tuple[list[float], int | str, bool, float | None]]]


def _objects(rows: datasets.Dataset, name: str, column: str, faults: Faults) -> Objects:
    """The objects of every row, stored as a dictionary of lists or a list of dictionaries."""

    def read(sample: tuple[int, Any]) -> list[tuple]:
        _, cell = sample
        if not cell or (isinstance(cell, dict) and not any(cell.values())):
            return []
        if isinstance(cell, dict):
            fields = [_field(cell, names) for names in FIELDS]
        elif isinstance(cell, list) and all(isinstance(entry, dict) for entry in cell):
            fields = [[_field(entry, names) for entry in cell] for names in FIELDS]
        else:
            fields = [None] * len(FIELDS)
        if any(values is None or None in values for values in fields[:2]):
            shown = ", ".join(cell) if isinstance(cell, dict) else f"{cell!s:.60}"
            raise UserError(
                f"The column {column} of {name} must hold a bbox and a category per object, but "
                f"it holds {shown}: choose another with --objects_column."
            )
        fields = [values or [None] * len(fields[0]) for values in fields]
        if len(set(map(len, fields))) > 1:
            raise ValueError("its lists differ in length")
        return [
            (box(corners), _category(category), flag(crowd), area(size))
            for corners, category, crowd, size in zip(*fields, strict=True)
        ]

    return list(read_each(name, "sample", enumerate(rows[column][:]), read, faults))


def _category(value: Any) -> int | str:
    """A class as its number or its name; a text is a name, also where it is of digits."""
    return value if isinstance(value, str) else identity(value)


def _field(entry: dict[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _classes(
    rows: datasets.Dataset,
    name: str,
    column: str,
    class_names: Sequence[str] | None,
    objects: list[Objects],
) -> tuple[list[str], dict[Any, int]]:
    """Names of the classes, and the class id of every stored category."""
    found = {category for split in objects for row in split for _, category, *_ in row}
    if not found:
        raise UserError(f"The column {column} of {name} holds no object: choose another.")
    labels = _class_label(rows.features[column])
    if all(isinstance(category, str) for category in found):
        classes = list(class_names or sorted(found))
        ids = {text: number for number, text in enumerate(classes)}
    elif class_names is None and labels is None:
        classes = [f"class {number}" for number in sorted(found)]
        ids = {category: number for number, category in enumerate(sorted(found))}
    else:
        classes = list(class_names or labels)
        ids = {number: number for number in range(len(classes))}
    unknown = next((category for category in found if category not in ids), None)
    if unknown is not None:
        raise UserError(
            f"{name} has an object of the category {unknown}, which is none of the "
            f"{len(classes)} classes: give all names with --class_names."
        )
    return classes, ids


def _class_label(feature: Any) -> list[str] | None:
    """Names of the ClassLabel among the fields of a column, at any depth of lists."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    if isinstance(feature, list):
        feature = feature[0]
    if isinstance(feature, dict):
        field = _field(feature, CATEGORIES)
        while hasattr(field, "feature"):
            field = field.feature
        return field.names if isinstance(field, datasets.ClassLabel) else None
    return None


def _stated(rows: datasets.Dataset, name: str, faults: Faults) -> list[tuple[int, int] | None]:
    """(height, width) of every image, where columns of these names give it."""
    if not {"height", "width"} <= set(rows.column_names):
        return [None] * len(rows)
    stored = zip(rows["height"][:], rows["width"][:], strict=True)
    sizes = read_each(name, "image size", stored, lambda size: tuple(map(pixels, size)), faults)
    return [size if all(size) else None for size in sizes]


def _cells(images: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """The cells of the column image, their bytes as buffers that copy nothing."""
    for rows in images.with_format("arrow").iter(64):
        for cell in rows.column("image"):
            cell = cell if cell.is_valid else {"path": pa.NULL, "bytes": pa.NULL}
            data = cell["bytes"]
            yield {
                "path": cell["path"].as_py(),
                "bytes": data.as_buffer() if data.is_valid else None,
            }


def _annotated(
    objects: Objects,
    headers: Iterator[Header],
    stated: Sequence[tuple[int, int] | None],
    ids: dict[Any, int],
    convert: Callable[[Sequence[float]], Box],
    in_shares: bool,
) -> Iterator[Annotated]:
    for row, header, size in zip(objects, headers, stated, strict=True):
        # The images have a table of their own.
        image = Annotated("", size, header=header, in_shares=in_shares, labelled=True)
        for corners, category, crowd, covered in row:
            image.add(convert(corners), ids[category], crowd, covered)
        yield image
