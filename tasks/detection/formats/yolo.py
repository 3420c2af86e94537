"""Detection data in YOLO's layout: a text file per image, and the names in data.yaml."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.class_files import read_class_file
from data.faults import Faults
from data.folders import TRAIN, VAL, data_root, image_files
from data.textfiles import read_text
from errors import UserError
from tasks.detection.formats.reading import given_class_names
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData, class_colors, stored_size, to_rows

EXPECTED = "images/{train,val} and labels/{train,val}, or {train,val}/images and .../labels"
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
MOST_CLASSES = 10_000  # a higher number without a name is a mistake

Line = tuple[int, list[float]]  # class id, and shares of the image's width and height


def load_yolo(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Folders of images and of text files: a line ``class cx cy w h`` per object, or a polygon.

    All numbers are shares of the image's width and height. ``class x y x y x y ...`` is a
    polygon; its box lies around it. An image without a text file has no objects. The splits and
    the names are those of data.yaml if there is one. Image sizes are read from the headers.

    Raises:
        UserError: a file or folder is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED)
    description = _description(root)
    splits = [
        [(image, _label_file(image)) for image in _images(root, description, names)]
        for names in (TRAIN, VAL)
    ]
    parsed = [[(image, file, _parse(file)) for image, file in split] for split in splits]
    highest = max((line[0] for split in parsed for *_, lines in split for line in lines), default=0)
    classes = given_class_names(options) or _names(root, description)
    notes = ()
    if not classes:
        if highest >= MOST_CLASSES:
            raise UserError(
                f"The labels in {root} go up to class {highest}, and no class names were given: "
                "correct the number, or write the names into data.yaml."
            )
        classes = [f"class {number}" for number in range(highest + 1)]
        notes = (f"No class names were given: the labels show {len(classes)} classes.",)
    train, val = (
        to_rows(_annotated(split, classes), classes, options.needs_masks) for split in parsed
    )
    return DetectionData(train, val, classes, class_colors(len(classes)), notes)


def _description(root: Path) -> dict[str, Any]:
    """data.yaml, with the splits as lists of places and the names as a list."""
    file = next((f for name in ("data", "dataset") if (f := root / f"{name}.yaml").is_file()), None)
    if file is None:
        return {}
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not valid YAML ({reason}): correct it.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must name the splits and the classes (train, val, names).")
    for split in (*TRAIN, *VAL):
        places = content.get(split) or []
        content[split] = [places] if isinstance(places, str) else places
        if not _are_texts(content[split]):
            raise UserError(f"{file} has {split}: {places!s:.60}, which must be a path or several.")
    if content.get("names"):
        content["names"] = _named(file, content["names"])
    return content | {"file": file}


def _named(file: Path, names: Any) -> list[str]:
    """The class names of data.yaml: a list, or an entry per number."""
    if isinstance(names, dict):
        try:
            numbered = {int(number): str(name) for number, name in names.items()}
        except (TypeError, ValueError):
            numbered = {}
        if numbered and 0 <= min(numbered) <= max(numbered) < MOST_CLASSES:
            names = [numbered.get(n, f"class {n}") for n in range(max(numbered) + 1)]
    if not isinstance(names, list):
        raise UserError(f"The names in {file} must be a list, or an entry per number from 0.")
    names = [str(name) for name in names]
    return _unique(file, names)


def _unique(file: Path, names: list[str]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file} gives two classes the name {twice}: rename one.")
    return names


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _names(root: Path, description: dict[str, Any]) -> list[str]:
    if names := description.get("names"):
        return names
    file = next((f for name in NAME_FILES if (f := root / name).is_file()), None)
    return _unique(file, read_class_file(file)[0]) if file else []


def _images(root: Path, description: dict[str, Any], split_names: Sequence[str]) -> list[Path]:
    """A split's images: from data.yaml, or a list of names, or from folders."""
    places = next((description[name] for name in split_names if description.get(name)), [])
    bases = (root / str(description.get("path", "")), root)
    found = [_resolve(place, bases) for place in places]
    if None in found:
        raise UserError(
            f"{description['file']} names {places[found.index(None)]}, which is not there: restore "
            "it, or correct the path."
        )
    if not found:
        usual = (
            arrangement.format(name)
            for name in split_names
            for arrangement in ("images/{}", "{}/images", "{}.txt", "{}")
        )
        found = [root / place for place in usual if (root / place).exists()][:1]
    images = [image for place in found for image in _listed(root, place)]
    if not images:
        where = ", ".join(map(str, found)) or str(root)
        raise UserError(
            f"There are no images of the split {split_names[0]} in {where}: it must hold "
            f"{EXPECTED}."
        )
    return images


def _resolve(place: str, bases: Sequence[Path]) -> Path | None:
    """A place that data.yaml names; tools write it relative to different folders."""
    inner = place
    while inner.startswith(("./", "../")):
        inner = inner.partition("/")[2]
    candidates = (base / path for path in (place, inner) for base in bases)
    return next((path for path in candidates if path.exists()), None)


def _listed(root: Path, place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (image for _, image in image_files(place))
        return
    for line in read_text(place).splitlines():
        if line.strip():
            image = Path(line.strip()).expanduser()
            nearest = (root / image, place.parent / image)
            yield next((path for path in nearest if path.is_file()), nearest[0])


def _label_file(image: Path) -> Path:
    """The text file: in the folder labels beside images, or next to the image."""
    parts = list(image.with_suffix(".txt").parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            return Path(*parts[:position], "labels", *parts[position + 1 :])
    return image.with_suffix(".txt")


def _parse(file: Path) -> list[Line]:
    if not file.is_file():
        return []
    lines = []
    for number, text in enumerate(read_text(file).splitlines(), start=1):
        fields = text.split()
        if not fields:
            continue
        try:
            category, values = int(fields[0]), [float(value) for value in fields[1:]]
        except ValueError:
            category, values = -1, []
        is_polygon = len(values) >= 6 and len(values) % 2 == 0
        finite = all(map(math.isfinite, values))
        if category < 0 or not finite or not (len(values) == 4 or is_polygon):
            raise UserError(
                f"Line {number} of {file} is '{text.strip():.60}': it must be 'class cx cy w h', "
                "or a class and the points of a polygon."
            )
        lines.append((category, values))
    return lines


def _annotated(
    split: list[tuple[Path, Path, list[Line]]], classes: Sequence[str]
) -> Iterator[Annotated]:
    for image, file, lines in split:
        size = stored_size(str(image))
        annotated = Annotated(str(image), size)
        for category, values in lines:
            if category >= len(classes):
                raise UserError(
                    f"{file} has the class {category}, but there are {len(classes)} class names, "
                    "numbered from 0: correct the file or the names."
                )
            if any(size):  # an unreadable image is reported when it is decoded
                _add(annotated, category, values, size)
        yield annotated


def _add(image: Annotated, category: int, values: list[float], size: tuple[int, int]) -> None:
    height, width = size
    if len(values) == 4:
        x, y, w, h = values
        image.add(((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), category)
        return
    xs = [min(max(x, 0.0), 1.0) * width for x in values[::2]]
    ys = [min(max(y, 0.0), 1.0) * height for y in values[1::2]]
    box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    outline = [[value for point in zip(xs, ys, strict=True) for value in point]]
    image.add(box, category, outline=outline)
