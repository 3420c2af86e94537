"""Detection data in COCO's layout: one JSON file per split, and folders of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.faults import Faults
from data.folders import TRAIN, VAL, data_root
from data.sources import evenly_spaced
from errors import UserError
from tasks.detection.formats.reading import (
    area,
    box,
    flag,
    given_class_names,
    identity,
    pixels,
    read_each,
    text,
)
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData, class_colors, to_rows

EXPECTED = "annotations/instances_{train,val}*.json and the folders of their images"

# The places of a split's file, in the order in which they are tried; {} is a name of the split.
FILES = (
    "annotations/instances_{}20??.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "instances_{}20??.json",
    "instances_{}.json",
    "{}.json",
)
SAMPLED = 32  # images of a file that are looked for, to find their folder

Id = int | str


def load_coco(options: DetectionOptions, faults: Faults) -> DetectionData:
    """COCO and what is stored like it.

    Category ids become 0..n-1 in their order, or the positions of their names in ``--class_names``.
    Crowds are kept as such, and so are images without objects.

    Raises:
        UserError: a file or folder is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED)
    found = [_annotation_files(root, names) for names in (TRAIN, VAL)]
    files = [several[-1] for several in found]
    notes = tuple(
        f"There are {len(several)} annotation files of one split: {several[-1]} is used."
        for several in found
        if len(several) > 1
    )
    contents = [_read(file) for file in files]
    names = _category_names(files, contents)
    classes = given_class_names(options) or list(names.values())
    for number, name in names.items():
        if name not in classes:
            raise UserError(
                f"{files[0]} has the category {name} (id {number}), which --class_names doesn't "
                "list: add it."
            )
    class_ids = {number: classes.index(name) for number, name in names.items()}
    train, val = (
        to_rows(_images(root, split, file, content, class_ids), classes, options.needs_masks)
        for split, file, content in zip((TRAIN, VAL), files, contents, strict=True)
    )
    return DetectionData(train, val, classes, class_colors(len(classes)), notes)


def _annotation_files(root: Path, split_names: Sequence[str]) -> list[Path]:
    """The split's files in the order of their years; there is at least one."""
    for pattern in FILES:
        for split in split_names:
            found = sorted(root.glob(pattern.format(split)))
            if found:
                return found
    raise UserError(
        f"{root} has no annotations of the split {split_names[0]}: it must hold {EXPECTED}."
    )


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error}): restore the file.") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(
                f"{file} has no list '{part}': a COCO file of objects holds images, annotations "
                "and categories."
            )
    if not content["images"] or not content["categories"]:
        raise UserError(f"{file} lists no images or no categories: choose another file.")
    return content


def _category_names(files: list[Path], contents: list[dict]) -> dict[Id, str]:
    """The name of each category id, in the order of the ids; both files must agree."""
    names: dict[Id, str] = {}
    for file, content in zip(files, contents, strict=True):
        for number, name in read_each(str(file), "category", content["categories"], _category):
            if names.setdefault(number, name) != name:
                raise UserError(
                    f"{file} calls the category {number} {name}, but {files[0]} calls it "
                    f"{names[number]}: make the categories of both files the same."
                )
    if len(set(names.values())) < len(names):
        raise UserError(f"{files[0]} gives two categories the same name: rename one.")
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _category(entry: dict[str, Any]) -> tuple[Id, str]:
    return identity(entry["id"]), text(entry["name"])


def _images(
    root: Path, split_names: Sequence[str], file: Path, content: dict, class_ids: dict[Id, int]
) -> list[Annotated]:
    """The images of a file with their objects, in its order."""
    listed = list(read_each(str(file), "image", content["images"], _image))
    folder = _image_folder(root, split_names, file, [name for _, name, _ in listed])
    images: dict[Id, Annotated] = {}
    for position, (number, name, size) in enumerate(listed):
        if number in images:
            raise UserError(
                f"{file} lists two images with the id {number} (one is {name}): give each its own."
            )
        image_id = number if isinstance(number, int) else position
        images[number] = Annotated(str(folder / name), size, image_id)

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
            outline=entry.get("segmentation"),
        )

    for _ in read_each(str(file), "annotation", content["annotations"], add):
        pass
    return list(images.values())


def _image(entry: dict[str, Any]) -> tuple[Id, str, tuple[int, int] | None]:
    size = pixels(entry.get("height")), pixels(entry.get("width"))
    return identity(entry["id"]), text(entry["file_name"]), size if all(size) else None


def _image_folder(root: Path, split_names: Sequence[str], file: Path, names: Sequence[str]) -> Path:
    """The folder that holds most of the images, as far as a sample of them shows.

    The folders of the other split are left out: its images may have the same names.
    """
    split = file.stem.removeprefix("instances_")
    folders = [parent / split for parent in (root, root / "images")]
    folders += [file.parent, file.parent / "images"]
    folders += [parent / name for name in split_names for parent in (root, root / "images")]
    folders += [root / "images", root]
    sample = [names[number] for number in evenly_spaced(len(names), SAMPLED)]
    found = [sum((folder / name).is_file() for name in sample) for folder in folders]
    if not any(found):
        raise UserError(
            f"{file} lists {names[0]}, which like the others is in none of the usual folders: put "
            f"the images into {root / split}."
        )
    return folders[found.index(max(found))]
