"""Detection data in tables: a line per box, with its image, its class and its corners."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.faults import Faults
from data.folders import data_root, entries, named, split_folder, subfolders
from data.paths import resolve
from data.textfiles import read_text
from errors import UserError
from tasks.detection.formats.reading import (
    MALFORMED,
    given_class_names,
    pixels,
    reason,
    text,
)
from tasks.detection.formats.splits import Place, divide, find_splits
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData

EXPECTED = "train.csv, val.csv and the images"
# What columns are called, in lower case.
IMAGE = ("filename", "file_name", "file", "image", "image_path", "img", "path", "image_id")
CLASS = ("class", "label", "class_name", "name", "category")
CORNERS = (
    ("xmin", "x_min", "x1", "left"),
    ("ymin", "y_min", "y1", "top"),
    ("xmax", "x_max", "x2", "right"),
    ("ymax", "y_max", "y2", "bottom"),
)
SIZE = (("height", "image_height", "img_height"), ("width", "image_width", "img_width"))
# keras-retinanet's tables have no header, and these columns.
WITHOUT_HEADER = ("path", "x1", "y1", "x2", "y2", "class")


@dataclass(frozen=True)
class _Columns:
    """The positions of the columns; those of a size are None where there is none."""

    image: int
    category: int
    corners: list[int]
    size: list[int | None]


Box = tuple[str, tuple[float, float, float, float]]  # class; x, y, width, height


def load_csv(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Tables with a line per box: image, class, xmin, ymin, xmax, ymax in pixels from 0.

    A line without corners is an image without objects. The classes are ``--class_names``, or else
    those that occur, sorted.

    Raises:
        UserError: a file is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED)
    splits = find_splits(
        options, root, lambda names: _find(root, names), lambda: _find_any(root), EXPECTED
    )

    def read(place: Place) -> list[tuple[Annotated, list[Box]]]:
        return _read(root, place, faults)

    parsed, notes = divide(options, root, splits, read, lambda entry: entry[0].image)
    found = sorted({name for split in parsed for _, boxes in split for name, _ in boxes})
    classes = given_class_names(options) or found
    if not classes:
        raise UserError(f"The tables in {root} hold no box: there is nothing to learn.")
    unknown = next((name for name in found if name not in classes), None)
    if unknown is not None:
        raise UserError(
            f"A table in {root} has the class {unknown}, which is none of {', '.join(classes)}: "
            "correct it, or give all names with --class_names."
        )
    for split in parsed:
        for annotated, boxes in split:
            for name, corners in boxes:
                annotated.add(corners, classes.index(name))
    images = [[annotated for annotated, _ in split] for split in parsed]
    return make_data(options, images, classes, faults, notes)


def _find(root: Path, split_names: Sequence[str]) -> Place | None:
    """The table of a split: train.csv, train_labels.csv, or one in the split's folder."""
    for folder in (root, named(root, ["annotations"]), named(root, ["data"])):
        for suffix in (".csv", "_labels.csv", "_annotations.csv", "_boxes.csv"):
            if folder and (file := named(folder, split_names, suffix)):
                return Place(file.name[: -len(suffix)].lower(), file)
    folder = split_folder(root, split_names)
    tables = _tables(folder) if folder else []
    return Place(folder.name.lower(), _only(tables)) if tables else None


def _find_any(root: Path) -> Place | None:
    tables = _tables(root) or [table for folder in subfolders(root) for table in _tables(folder)]
    return Place("", _only(tables)) if tables else None


def _tables(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.suffix.lower() == ".csv"]


def _only(tables: list[Path]) -> Path:
    if len(tables) > 1:
        raise UserError(
            f"{tables[0].parent} holds several tables, {tables[0].name} and {tables[1].name}: keep "
            "one, or call them train.csv and val.csv."
        )
    return tables[0]


def _read(root: Path, place: Place, faults: Faults) -> list[tuple[Annotated, list[Box]]]:
    """The images of a table, in the order of their first lines, and their boxes."""
    table: Path = place.found
    reader = csv.reader(io.StringIO(read_text(table), newline=""), skipinitialspace=True)
    images: dict[str, tuple[Annotated, list[Box]]] = {}
    bases = _bases(root, place)
    columns = None
    try:
        for fields in reader:
            if not any(map(str.strip, fields)):
                continue
            if columns is None:
                columns, is_header = _columns(table, fields)
                if is_header:
                    continue
            where = f"line {reader.line_num}"
            with faults.of(table, where):
                _add(fields, columns, images, bases, f"{where.capitalize()} of {table}")
    except csv.Error as error:
        raise UserError(f"Line {reader.line_num + 1} of {table} is no CSV ({error}).") from None
    _refuse_shares(table, [corners for _, boxes in images.values() for _, corners in boxes])
    return list(images.values())


def _bases(root: Path, place: Place) -> list[Path]:
    """The folders in which the images of a table are looked for."""
    own = split_folder(root, [place.name]) if place.name else None
    images = named(root, ["images", "image", "imgs", "jpegimages"])
    inner = images and place.name and split_folder(images, [place.name])
    folders = [place.found.parent, own, inner, images, root]
    if not place.name:
        folders += subfolders(root)
    return [folder for folder in folders if folder]


def _columns(table: Path, first: list[str]) -> tuple[_Columns, bool]:
    """Where the columns are, and whether the first line names them."""
    names = [field.strip().lower() for field in first]
    is_header = True
    numbers = all(_is_number(field) or not field for field in names[1:5])
    if len(names) == len(WITHOUT_HEADER) and numbers:
        names, is_header = list(WITHOUT_HEADER), False

    def position(known: Sequence[str]) -> int | None:
        return next((names.index(name) for name in known if name in names), None)

    image, category, corners = position(IMAGE), position(CLASS), [position(c) for c in CORNERS]
    if None in (image, category, *corners):
        raise UserError(
            f"The first line of {table} must name the columns filename, class, xmin, ymin, xmax "
            f"and ymax, but is {','.join(first):.80}."
        )
    return _Columns(image, category, corners, [position(side) for side in SIZE]), is_header


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _add(
    fields: list[str],
    columns: _Columns,
    images: dict[str, tuple[Annotated, list[Box]]],
    bases: Sequence[Path],
    where: str,
) -> None:
    try:
        name, category = fields[columns.image].strip(), fields[columns.category].strip()
        corners = [fields[position].strip() for position in columns.corners]
        size = [None if at is None else pixels(fields[at].strip()) for at in columns.size]
        if name not in images:
            path = resolve(text(name), bases) if name else None
            if path is None:
                raise UserError(
                    f"{where} names the image {name[:200] or '(none)'}, which is not there: "
                    "restore it, or remove the line."
                )
            images[name] = Annotated(str(path), tuple(size) if all(size) else None), []
        if not any(corners):
            return  # an image without objects
        if not category:
            raise ValueError("it names no class")
        left, top, right, bottom = map(float, corners)
    except MALFORMED as error:
        raise UserError(
            f"{where} can't be used ({reason(error)}): it must hold an image, a class and four "
            "corners in pixels."
        ) from None
    images[name][1].append((category, (left, top, right - left, bottom - top)))


def _refuse_shares(table: Path, boxes: list[tuple[float, float, float, float]]) -> None:
    """Refuse boxes that all lie within one pixel: shares of the image's sides.

    Raises:
        UserError: they do.
    """
    reach = max((x + width for x, _, width, _ in boxes), default=math.inf)
    reach = max(reach, max((y + height for _, y, _, height in boxes), default=math.inf))
    if reach <= 1:
        raise UserError(
            f"All corners in {table} are at most 1, as shares are: give them in pixels of the "
            "image."
        )
