"""Detection data from the Hugging Face hub, or from a local copy in its formats."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets

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
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData, class_colors, stored_size, to_rows

BOXES = ("bbox", "bboxes", "boxes", "box")
CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "classes")
CROWDS = ("iscrowd", "is_crowd", "difficult")
FIELDS = (BOXES, CATEGORIES, CROWDS, ("area", "areas"))

Box = tuple[float, float, float, float]


def _xywh(box: Sequence[float], size: tuple[int, int]) -> Box:
    return tuple(box)


def _xyxy(box: Sequence[float], size: tuple[int, int]) -> Box:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def _shares(box: Sequence[float], size: tuple[int, int]) -> Box:
    x, y, width, height = box
    down, across = size
    return (x - width / 2) * across, (y - height / 2) * down, width * across, height * down


BOX_FORMATS: dict[str, Callable[[Sequence[float], tuple[int, int]], Box]] = {
    "coco": _xywh,
    "voc": _xyxy,
    "yolo": _shares,
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
    objects = [_objects(rows, name, objects_column) for _, rows in splits]
    classes, ids = _classes(train, name, objects_column, given_class_names(options), objects)
    done = []
    for (images, rows), found in zip(splits, objects, strict=True):
        sizes = _sizes(rows, images, name)
        annotated = _annotated(found, sizes, ids, BOX_FORMATS[options.bbox_format])
        annotations = to_rows(annotated, classes, with_masks=False).remove_columns("image")
        # Side by side, so that the images stay where they are on the disk.
        done.append(datasets.concatenate_datasets([images, annotations], axis=1))
    return DetectionData(*done, classes, class_colors(len(classes)), notes)


# Of each row, for each object: box, category, whether it is a crowd, and area if it is given.
Objects = list[list[tuple[list[float], int | str, bool, float | None]]]


def _objects(rows: datasets.Dataset, name: str, column: str) -> Objects:
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
            (box(corners), identity(category), flag(crowd), area(size))
            for corners, category, crowd, size in zip(*fields, strict=True)
        ]

    return list(read_each(name, "sample", enumerate(rows[column][:]), read))


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


def _sizes(
    rows: datasets.Dataset, images: datasets.Dataset, name: str
) -> Iterator[tuple[int, int]]:
    """(height, width) of every image: from columns of these names, or the files' headers."""
    if not {"height", "width"} <= set(rows.column_names):
        return (stored_size(row["image"]) for row in images)
    stored = zip(rows["height"][:], rows["width"][:], strict=True)
    sizes = read_each(name, "image size", stored, lambda size: tuple(map(pixels, size)))
    return (size if all(size) else stored_size(images[n]["image"]) for n, size in enumerate(sizes))


def _annotated(
    objects: Objects,
    sizes: Iterator[tuple[int, int]],
    ids: dict[Any, int],
    convert: Callable[[Sequence[float], tuple[int, int]], Box],
) -> Iterator[Annotated]:
    for row, size in zip(objects, sizes, strict=True):
        image = Annotated("", size)  # the images have a table of their own
        for corners, category, crowd, covered in row:
            image.add(convert(corners, size), ids[category], crowd, covered)
        yield image
