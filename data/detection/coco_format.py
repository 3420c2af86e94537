"""Detection data in COCO's layout: one JSON file per split, and folders of pictures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.detection.rows import Annotated, DetectionData, class_colors, to_rows
from data.sources import TRAIN, VAL, data_root
from errors import UserError

EXPECTED = "annotations/instances_{train,val}*.json and the folders of their pictures"

# Where a split's file is looked for; {} is a name of the split. The first is COCO's own.
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


def load_coco(
    data_dir: str | None,
    class_names: Sequence[str] | None = None,
    with_masks: bool = False,
    **_: object,
) -> DetectionData:
    """COCO and what is stored like it.

    Category ids become 0..n-1 in their order, or the positions of their names in ``class_names``.
    Crowds are kept as such, and so are pictures without objects.
    """
    root = data_root("coco", data_dir, EXPECTED)
    found = [_annotation_files(root, names) for names in (TRAIN, VAL)]
    files = [several[-1] for several in found]
    notes = tuple(
        f"There are {len(several)} annotation files of one split: {several[-1]} is used."
        for several in found
        if len(several) > 1
    )
    contents = [_read(file) for file in files]
    names = _category_names(files, contents)
    classes = list(class_names or names.values())
    for number, name in names.items():
        if name not in classes:
            raise UserError(
                f"{files[0]} has the category {name} (id {number}), which is not among the class "
                "names given: add it to them."
            )
    class_ids = {number: classes.index(name) for number, name in names.items()}
    train, val = (
        to_rows(_pictures(root, file, content, class_ids), classes, with_masks)
        for file, content in zip(files, contents, strict=True)
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
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON ({error}): restore the file.") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(
                f"{file} has no list '{part}': a COCO file of objects holds images, annotations "
                "and categories."
            )
    if not content["images"] or not content["categories"]:
        raise UserError(f"{file} lists no images or no categories: choose another file.")
    return content


def _category_names(files: list[Path], contents: list[dict]) -> dict[int, str]:
    """Names of the category ids in the order of the ids, the same in both files."""
    names: dict[int, str] = {}
    for file, content in zip(files, contents, strict=True):
        for category in content["categories"]:
            number, name = _fields(file, category, "category", "id", "name")
            if names.setdefault(number, name) != name:
                raise UserError(
                    f"{file} calls the category {number} {name}, but {files[0]} calls it "
                    f"{names[number]}: make the categories of both files the same."
                )
    if len(set(names.values())) < len(names):
        raise UserError(f"{files[0]} gives two categories the same name: rename one.")
    return dict(sorted(names.items()))


def _pictures(
    root: Path, file: Path, content: dict, class_ids: dict[int, int]
) -> Iterator[Annotated]:
    folder = _picture_folder(root, file, _fields(file, content["images"][0], "image", "file_name"))
    pictures: dict[int, Annotated] = {}
    for position, image in enumerate(content["images"]):
        name, number = _fields(file, image, "image", "file_name", "id")
        height, width = image.get("height"), image.get("width")
        size = (int(height), int(width)) if height and width else None
        image_id = number if isinstance(number, int) else position
        pictures[number] = Annotated(str(folder / name), size, image_id)
    for entry in content["annotations"]:
        image, category, box = _fields(file, entry, "annotation", "image_id", "category_id", "bbox")
        if image not in pictures or category not in class_ids:
            what = f"image {image}" if image not in pictures else f"category {category}"
            raise UserError(
                f"Annotation {entry.get('id')} in {file} is of the {what}, which the file doesn't "
                "list: add it or remove the annotation."
            )
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise UserError(
                f"Annotation {entry.get('id')} in {file} has the bbox {box}: it must be four "
                "numbers, x, y, width and height in pixels."
            )
        pictures[image].add(
            box,
            class_ids[category],
            crowd=bool(entry.get("iscrowd")),
            area=entry.get("area"),
            outline=entry.get("segmentation"),
        )
    yield from pictures.values()


def _picture_folder(root: Path, file: Path, first: tuple) -> Path:
    (name,) = first
    split = file.stem.removeprefix("instances_")
    near = file.parent
    for folder in (
        root / split,
        root / "images" / split,
        near,
        near / "images",
        root / "images",
        root,
        *(parent / other for other in (*TRAIN, *VAL) for parent in (root, root / "images")),
    ):
        if (folder / name).is_file():
            return folder
    raise UserError(
        f"{file} lists {name}, which is in none of the usual folders: put the pictures into "
        f"{root / split}."
    )


def _fields(file: Path, entry: Any, what: str, *names: str) -> tuple:
    """The values of an entry's fields; UserError if one is missing."""
    for name in names:
        if not isinstance(entry, dict) or name not in entry:
            raise UserError(f"{file} has an {what} without '{name}' ({entry!s:.80}): complete it.")
    return tuple(entry[name] for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
