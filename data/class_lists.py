"""Names and colours of classes: those of well-known data sets, and class files of users."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.masks import IGNORE, MAX_CLASSES, Color, MaskRule, default_colors
from data.sources import read_text
from errors import UserError

CAMVID = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}

VOC = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]

# name: (id in the labelIds files, colour); the order is that of the train ids.
CITYSCAPES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}

VOID_NAMES = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set: names, colours to draw them in, and what its masks store."""

    names: list[str]
    colors: list[Color]
    rule: MaskRule


def class_list(names: Sequence[str], palette: Sequence[Color] | None = None) -> ClassList:
    """Classes whose masks store the position of a name in ``names``, or its colour in ``palette``.

    A name such as "void" or "ignore" is no class: its pixels are ignored, and the classes after it
    move up by one.

    Raises:
        UserError: names and colours don't match in number, a name or colour occurs twice, or there
            are no classes or more than 254.
    """
    if palette is not None and len(palette) != len(names):
        raise UserError(
            f"There are {len(names)} class names but {len(palette)} colours: give one for each."
        )
    kept = [name for name in names if name.lower() not in VOID_NAMES]
    if not 1 <= len(kept) <= MAX_CLASSES:
        raise UserError(f"There are {len(kept)} classes: give between 1 and {MAX_CLASSES} names.")
    for what, values in (("class name", kept), ("colour", palette or ())):
        twice = next((value for value in values if list(values).count(value) > 1), None)
        if twice is not None:
            raise UserError(f"The {what} {twice} occurs twice in the list of classes: remove one.")
    ids = {v: kept.index(n) if n in kept else IGNORE for v, n in enumerate(names)}
    if palette is None:
        return ClassList(kept, default_colors(len(kept)), MaskRule.of_ids(ids))
    palette = [tuple(color) for color in palette]
    shown = [color for color, name in zip(palette, names, strict=True) if name in kept]
    coded = [(color, ids[value]) for value, color in enumerate(palette)]
    if all(len(set(color)) == 1 for color in palette):  # shades of grey, as in masks of 0 and 255
        ids = {color[0]: class_id for color, class_id in coded}
    return ClassList(kept, shown, MaskRule.of_ids(ids, coded))


def read_class_file(path: Path) -> tuple[list[str], list[Color] | None]:
    """Read class names, and colours if there are any, from a text, CSV or JSON file.

    Text and CSV: a class per line, ``name``, ``name r g b`` or ``r g b name``, separated by commas,
    tabs or spaces; a first line of column names is skipped. JSON: a list of names, or an object
    ``{"0": name, ...}``.

    Raises:
        UserError: the file is missing or isn't like that.
    """
    if not path.is_file():
        raise UserError(f"There is no class file {path}: write one class name per line into it.")
    text = read_text(path)
    if path.suffix == ".json":
        return _parse_json(path, text), None
    names, colors = [], []
    for fields in _fields(text):
        name, color = _name_and_color(fields)
        names.append(name)
        colors.append(color)
    if not names:
        raise UserError(f"The class file {path} is empty: write one class name per line into it.")
    if len({color is None for color in colors}) != 1:
        raise UserError(f"{path} must give a colour (r g b) to every class or to none.")
    return names, None if colors[0] is None else colors


def _parse_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
        if isinstance(content, dict):  # a number that has no name is not a class
            numbers = range(max(map(int, content)) + 1)
            content = [content.get(str(number), "void") for number in numbers]
        if not isinstance(content, list):
            raise ValueError(f"it is a {type(content).__name__}")
        return [str(name) for name in content]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"The class file {path} can't be read ({error}): it must be a JSON list of names, or "
            'an object {"0": name, ...}.'
        ) from None


def _fields(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [
        [field.strip() for field in next(csv.reader([line]))] if "," in line else line.split()
        for line in lines
    ]
    is_header = bool(rows) and [field.lower() for field in rows[0]][-3:] == ["r", "g", "b"]
    return rows[1:] if is_header else rows


def _name_and_color(fields: list[str]) -> tuple[str, Color | None]:
    for color, name in ((fields[-3:], fields[:-3]), (fields[:3], fields[3:])):
        if name and all(value.isdecimal() and int(value) < 256 for value in color):
            return " ".join(name), tuple(int(value) for value in color)
    return " ".join(fields), None
