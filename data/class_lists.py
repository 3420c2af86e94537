"""Names and colours of classes: those of well-known data sets, and of lists that users give."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torchvision.models.segmentation import FCN_ResNet50_Weights

from data.masks import IGNORE, MAX_CLASSES, Color, MaskRule, default_colors
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


def class_list(names: Sequence[str], colors: Sequence[Color | None] | None = None) -> ClassList:
    """Classes whose masks store the position of a name in ``names``, or its colour in ``colors``.

    A name such as "void" or "ignore" is no class: its pixels are ignored, and the classes after it
    move up by one.

    Args:
        names: of all stored values.
        colors: an RGB triple per name, or None for one that is only a number; None for masks of
            numbers.

    Raises:
        UserError: a name or colour occurs twice, or there are no classes or more than 254.
    """
    kept = [name for name in names if name.lower() not in VOID_NAMES]
    if not 1 <= len(kept) <= MAX_CLASSES:
        raise UserError(f"There are {len(kept)} classes: give between 1 and {MAX_CLASSES} names.")
    given = [color for color in colors or () if color is not None]
    for what, values in (("class name", kept), ("colour", given)):
        twice = next((value for value in values if list(values).count(value) > 1), None)
        if twice is not None:
            raise UserError(f"The {what} {twice} occurs twice in the list of classes: remove one.")
    places = {name: place for place, name in enumerate(kept)}
    ids = {value: places.get(name, IGNORE) for value, name in enumerate(names)}
    if colors is None:
        return ClassList(kept, default_colors(len(kept)), MaskRule.of_ids(ids))
    shown = [color for color, name in zip(colors, names, strict=True) if name in places]
    coded = [(color, ids[value]) for value, color in enumerate(colors) if color is not None]
    if all(len(set(color)) == 1 for color in given):  # shades of grey, as in masks of 0 and 255
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


def label_text(text: str) -> str:
    """A label; a whole number in any notation, 3, 3.0 or 03, is the same label."""
    text = text.strip()
    number = re.fullmatch(r"0*(\d+)(\.0*)?", text)
    return number[1] if number else text


def by_number(label: str) -> tuple[bool, int, str]:
    """A sorting key that puts the class 10 after the class 9, and names after numbers."""
    return (False, int(label), "") if label.isdecimal() else (True, 0, label)
