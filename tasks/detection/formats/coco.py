"""Detection data in COCO's layout: one JSON file per split, and folders of images."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.faults import Faults
from data.folders import data_root
from data.textfiles import JsonList, read_json_lists
from errors import UserError
from tasks.detection.formats.coco_files import find_image_folder, find_split, find_whole
from tasks.detection.formats.reading import (
    MALFORMED,
    area,
    box,
    flag,
    given_class_names,
    identity,
    pixels,
    read_each,
    text,
)
from tasks.detection.formats.splits import Place, divide, find_splits
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData

EXPECTED = "annotations/instances_{train,val}*.json and the folders of their images"
PARTS = ("images", "annotations", "categories")

Id = int | str


@dataclass(frozen=True)
class _Category:
    """A category of a file: its name, and that of the category above it or ""."""

    name: str
    parent: str


@dataclass(frozen=True)
class _Content:
    """What a file holds; nothing but the categories has been looked at."""

    file: Path
    images: list[Any] | JsonList
    annotations: list[Any] | JsonList
    categories: dict[Id, _Category]


def load_coco(options: DetectionOptions, faults: Faults) -> DetectionData:
    """COCO and what is stored like it.

    Category ids become 0..n-1 in their order, or the positions of their names in ``--class_names``.
    Crowds are kept as such, and so are images without objects. A category that only groups others
    is no class.

    Raises:
        UserError: a file or folder is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED)
    splits = find_splits(
        options,
        root,
        lambda names: find_split(root, names),
        lambda: find_whole(root),
        EXPECTED,
    )
    places = [place for place in splits[:2] if place]
    notes = [
        f"There are {len(place.found)} annotation files of one split: {place.found[-1]} is used."
        for place in places
        if len(place.found) > 1
    ]
    contents = {place.found[-1]: _read(place.found[-1], faults) for place in places}
    names, parents = _category_names(list(contents.values()))
    if parents:
        notes.append(f"Left out, since they only group other categories: {', '.join(parents)}.")
    classes = given_class_names(options) or list(names.values())
    for number, name in names.items():
        if name not in classes:
            raise UserError(
                f"{places[0].found[-1]} has the category {name} (id {number}), which --class_names "
                "doesn't list: add it."
            )
    class_ids = {number: classes.index(name) for number, name in names.items()}

    unused: set[str] = set()

    def read(place: Place) -> list[Annotated]:
        content = contents[place.found[-1]]
        return _images(root, place.name, content, class_ids, options.needs_masks, unused, faults)

    divided, more = divide(options, root, splits, read, lambda annotated: annotated.image)
    notes += [f"The objects have {what}, which are left out." for what in unused]
    return make_data(options, divided, classes, faults, [*notes, *more])


def _read(file: Path, faults: Faults) -> _Content:
    content = read_json_lists(file)
    for part in PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list | JsonList):
            raise UserError(
                f"{file} has no list '{part}': a COCO file of objects holds images, annotations "
                "and categories."
            )
    if not content["images"] or not content["categories"]:
        raise UserError(f"{file} lists no images or no categories: choose another file.")
    categories = dict(read_each(file, "category", content["categories"], _category, faults))
    return _Content(file, content["images"], content["annotations"], categories)


def _category(entry: dict[str, Any]) -> tuple[Id, _Category]:
    parent = entry.get("supercategory")
    return identity(entry["id"]), _Category(
        text(entry["name"]), parent if isinstance(parent, str) else ""
    )


def _category_names(contents: Sequence[_Content]) -> tuple[dict[Id, str], list[str]]:
    """The name of each category id, in the order of the ids, and those that only group others.

    Raises:
        UserError: the files don't agree, or two categories have one name.
    """
    found: dict[Id, _Category] = {}
    for content in contents:
        for number, category in content.categories.items():
            if found.setdefault(number, category).name != category.name:
                raise UserError(
                    f"{content.file} calls the category {number} {category.name}, but "
                    f"{contents[0].file} calls it {found[number].name}: make the categories of "
                    "both files the same."
                )
    parents = _parents(found, contents)
    names = {number: category.name for number, category in found.items() if number not in parents}
    if len(set(names.values())) < len(names):
        raise UserError(f"{contents[0].file} gives two categories the same name: rename one.")
    ordered = sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0]))
    return dict(ordered), [found[number].name for number in parents]


def _parents(found: dict[Id, _Category], contents: Sequence[_Content]) -> list[Id]:
    """The categories that others name as the one above them and that have no object."""
    above = {
        number
        for number, category in found.items()
        if any(other.parent == category.name for n, other in found.items() if n != number)
    }
    if not above:
        return []
    used = set()
    for content in contents:
        for entry in content.annotations:
            with contextlib.suppress(*MALFORMED):  # reported when the annotations are read
                used.add(identity(entry["category_id"]))
    return sorted(above - used, key=str)


def _images(
    root: Path,
    split: str,
    content: _Content,
    class_ids: dict[Id, int],
    with_masks: bool,
    unused: set[str],
    faults: Faults,
) -> list[Annotated]:
    """The images of a file with their objects, in its order; ``unused`` gets what is left out."""
    file = content.file
    listed = list(read_each(file, "image", content.images, _image, faults))
    path_of = find_image_folder(root, split, file, [name for _, name, _ in listed])
    images: dict[Id, Annotated] = {}
    ids: dict[str, Id] = {}  # by the image's path
    for position, (number, name, size) in enumerate(listed):
        if number in images:
            sentence = (
                f"{file} lists two images with the id {number} (one is {name}): give each its own."
            )
            faults.add(file, sentence, f"image {position + 1}")
            continue
        path = str(path_of(name))
        if (first := ids.setdefault(path, number)) != number:
            sentence = (
                f"{file} lists {name} under the ids {first} and {number}: keep one, and give its "
                "annotations that image_id."
            )
            faults.add(file, sentence, f"image {position + 1}")  # kept, since objects refer to it
        image_id = number if isinstance(number, int) else position
        images[number] = Annotated(path, size, image_id)

    def add(entry: dict[str, Any]) -> None:
        image, category = identity(entry["image_id"]), identity(entry["category_id"])
        for what, number, known in (("image", image, images), ("category", category, class_ids)):
            if number not in known:
                raise ValueError(f"it is of the {what} {number}, which the file doesn't list")
        images[image].add(
            box(entry["bbox"]),
            class_ids[category],
            crowd=flag(entry.get("iscrowd")),
            area=area(entry.get("area")),
            outline=entry.get("segmentation") if with_masks else None,  # most of the file
        )
        if entry.get("keypoints"):
            unused.add("keypoints")

    for _ in read_each(file, "annotation", content.annotations, add, faults):
        pass
    return list(images.values())


def _image(entry: dict[str, Any]) -> tuple[Id, str, tuple[int, int] | None]:
    size = pixels(entry.get("height")), pixels(entry.get("width"))
    return identity(entry["id"]), text(entry["file_name"]), size if all(size) else None
