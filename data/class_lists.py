"""Names and colours of classes: those of well-known data sets, and class files of users."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.models.segmentation import FCN_ResNet50_Weights

from data.masks import IGNORE, MAX_CLASSES, Color, MaskRule, default_colors
from data.textfiles import read_text
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

# torchvision knows VOC's classes as those of its models; the first is the background.
VOC = ["background", *FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:]]

VOID_NAMES = {"void", "ignore", "ignored", "unlabeled", "unlabelled"}


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set.

    Attributes:
        names: of the class ids 0..n-1.
        colors: an RGB triple per class, to draw it in.
        rule: maps a decoded mask to class ids.
    """

    names: list[str]
    colors: list[Color]
    rule: MaskRule


def class_list(names: Sequence[str], colors: Sequence[Color] | None = None) -> ClassList:
    """Classes whose masks store the position of a name in ``names``, or its colour in ``colors``.

    A name such as "void" or "ignore" is no class: its pixels are ignored, and the classes after it
    move up by one.

    Args:
        names: of all stored values.
        colors: an RGB triple per name, or None for masks of numbers.

    Raises:
        UserError: a name or colour occurs twice, or there are no classes or more than 254.
    """
    kept = [name for name in names if name.lower() not in VOID_NAMES]
    if not 1 <= len(kept) <= MAX_CLASSES:
        raise UserError(f"There are {len(kept)} classes: give between 1 and {MAX_CLASSES} names.")
    for what, values in (("class name", kept), ("colour", colors or ())):
        twice = next((value for value in values if list(values).count(value) > 1), None)
        if twice is not None:
            raise UserError(f"The {what} {twice} occurs twice in the list of classes: remove one.")
    ids = {v: kept.index(n) if n in kept else IGNORE for v, n in enumerate(names)}
    if colors is None:
        return ClassList(kept, default_colors(len(kept)), MaskRule.of_ids(ids))
    shown = [color for color, name in zip(colors, names, strict=True) if name in kept]
    coded = [(color, ids[value]) for value, color in enumerate(colors)]
    if all(len(set(color)) == 1 for color in colors):  # shades of grey, as in masks of 0 and 255
        ids = {color[0]: class_id for color, class_id in coded}
    return ClassList(kept, shown, MaskRule.of_ids(ids, coded))


def require_classes(classes: Sequence[str], where: object) -> None:
    """Refuse training data with fewer than two classes.

    Args:
        classes: the names of the classes.
        where: the file, folder or data set, for the message.

    Raises:
        UserError: there are fewer than two.
    """
    if len(classes) < 2:
        raise UserError(
            f"{where} names {len(classes)} class{'' if classes else 'es'} for training, but a "
            "classifier takes 2 or more: add another class."
        )


def read_class_file(path: Path) -> tuple[list[str], list[Color] | None]:
    """Read class names, and colours if there are any, from a text, CSV or JSON file.

    A text or CSV file has one class per line, ``name``, ``name r g b`` or ``r g b name``, separated
    by commas, tabs or spaces; a first line of column names is skipped. A JSON file is a list of
    names or an object ``{"0": name, ...}``.

    Returns:
        The names, and an RGB triple for each or None.

    Raises:
        UserError: the file is missing or has another form.
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
        if isinstance(content, dict):  # a number without a name is no class
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
