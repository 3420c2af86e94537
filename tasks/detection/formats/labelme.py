"""Detection data of labelme: a JSON file per image, with polygons, rectangles and circles."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, data_root, find_files, split_folder
from data.textfiles import read_json
from errors import UserError
from tasks.detection.formats.reading import MALFORMED, given_class_names, pixels, reason, text
from tasks.detection.formats.splits import Place, divide, find_splits, left_out_notes, unused_note
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData

EXPECTED = "train and val, folders of images and of labelme's JSON files"
IGNORED = "__ignore__"  # labelme's name of what counts neither as object nor as background
CIRCLE = 64  # corners of the polygon that stands for a circle

Points = list[list[float]]


class _Pair(NamedTuple):
    """An image, its labelme file, and why it isn't known whether that is its file."""

    image: Path
    file: Path | None
    problem: str


@dataclass
class _Labelled:
    """An image, and of each of its objects the class and polygons."""

    image: Path
    file: Path | None
    size: tuple[int, int] | None = None
    objects: list[tuple[str, list[Points]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def load_labelme(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Folders of images with labelme's JSON files beside them, or in another folder of the split.

    Polygons of one class and one group are one object. What is called ``__ignore__`` is a crowd of
    every class. Other shapes, such as points and lines, are left out with a note. The classes are
    ``--class_names``, or else those that occur, sorted.

    Raises:
        UserError: a file is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED)
    splits = find_splits(
        options,
        root,
        lambda names: _find(split_folder(root, names), faults),
        lambda: _find(root, faults, ""),
        EXPECTED,
    )

    def read(place: Place) -> list[_Labelled]:
        return _read(place.found[0], options.skip_unlabelled, faults)

    parsed, notes = divide(options, root, splits, read, lambda entry: entry.image)
    unused = [file for place in splits[:2] if place for file in place.found[1]]
    notes += left_out_notes(root, splits) + unused_note(unused, "JSON file")
    entries = [entry for split in parsed for entry in split]
    found = sorted({name for entry in entries for name, _ in entry.objects} - {IGNORED})
    classes = given_class_names(options) or found
    for entry in entries:
        for name, _ in entry.objects:
            if name not in (*classes, IGNORED):
                sentence = (
                    f"{entry.file} has an object of the class {name}, which is none of "
                    f"{', '.join(classes)}: correct it, or give all names with --class_names."
                )
                faults.add(entry.file, sentence)
    kinds = Counter(kind for entry in entries for kind in entry.left_out)
    if kinds:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        notes += (f"Only polygons, rectangles and circles are objects; left out: {counted}.",)
    annotated = [[_annotated(entry, classes) for entry in split] for split in parsed]
    return make_data(options, annotated, classes, faults, notes)


def _find(folder: Path | None, faults: Faults, name: str | None = None) -> Place | None:
    """The images of a folder, each with its labelme file, and the other JSON files."""
    if folder is None:
        return None
    found = find_files(folder, faults, {*IMAGE_SUFFIXES, ".json"})
    files = [path for path in found.files if path.suffix.lower() == ".json"]
    images = [path for path in found.files if path.suffix.lower() != ".json"]
    pairs = _pairs(images, files)
    if not any(file for _, file, _ in pairs):
        return None
    used = {file for _, file, _ in pairs}
    unused = [file for file in files if file not in used]
    split = folder.name.lower() if name is None else name
    return Place(split, (pairs, unused), found.left_out)


def _pairs(images: Sequence[Path], files: Sequence[Path]) -> list[_Pair]:
    """The file of each image: the one beside it, or the only one of its name.

    A file beside one image is never that of another.
    """
    beside: dict[Path, list[Path]] = {}  # images by their path without suffix
    for image in images:
        beside.setdefault(image.with_suffix(""), []).append(image)
    places = {file.with_suffix(""): file for file in files}
    apart: dict[str, list[Path]] = {}
    for place, file in places.items():
        if place not in beside:
            apart.setdefault(place.name, []).append(file)
    names = Counter(image.stem for image in images)
    pairs = []
    for image in images:
        place = image.with_suffix("")
        own, problem = [places[place]] if place in places else apart.get(image.stem, []), ""
        same = len(beside[place]) if place in places else names[image.stem]
        if own and (same > 1 or len(own) > 1):
            problem = (
                f"{own[0]} may be of {image}, but there are {same} images and {len(own)} JSON "
                "files of that name: put each JSON file beside its image, under a name of its own."
            )
        pairs.append(_Pair(image, own[0] if own else None, problem))
    return pairs


def _read(pairs: Sequence[_Pair], skip_unlabelled: bool, faults: Faults) -> list[_Labelled]:
    entries = []
    for image, file, problem in pairs:
        if problem:
            faults.add(image, problem)
        elif file:
            with faults.of(file):
                entries.append(_parse(image, file))
        elif skip_unlabelled:
            entries.append(_Labelled(image, None))
        else:
            sentence = (
                f"There is no {image.with_suffix('.json')}: label the image, remove it, or leave "
                "out all images without a file with --skip_unlabelled true."
            )
            faults.add(image, sentence)
    return entries


def _parse(image: Path, file: Path) -> _Labelled:
    content = read_json(file)
    try:
        size = pixels(content.get("imageHeight")), pixels(content.get("imageWidth"))
        entry = _Labelled(image, file, size if all(size) else None)
        groups: dict[tuple[str, Any], list[Points]] = {}
        for number, shape in enumerate(content["shapes"]):
            kind = shape.get("shape_type") or "polygon"
            points = _outline(kind, [[float(x), float(y)] for x, y in shape["points"]])
            if points:
                group = shape.get("group_id")
                key = ("alone", number) if group is None else ("group", str(group))
                groups.setdefault((text(shape["label"]), key), []).append(points)
            else:
                entry.left_out.append(kind)
        entry.objects += [(name, outline) for (name, _), outline in groups.items()]
    except MALFORMED as error:
        raise UserError(
            f"{file} is not a labelme file ({reason(error)}): correct it, or remove it."
        ) from None
    return entry


def _outline(kind: str, points: Points) -> Points | None:
    """The corners of a shape; None for one without an area.

    Raises:
        ValueError: it has too few points, or they are no numbers.
    """
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError("a point is no number")
    if kind in ("polygon", "rectangle", "circle") and len(points) < (3 if kind == "polygon" else 2):
        raise ValueError(f"a {kind} has {len(points)} points")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[:2]
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    if kind == "circle":  # its middle, and a point on it
        (x, y), (on_x, on_y) = points[:2]
        radius = math.hypot(on_x - x, on_y - y)
        turns = (2 * math.pi * number / CIRCLE for number in range(CIRCLE))
        return [[x + radius * math.cos(turn), y + radius * math.sin(turn)] for turn in turns]
    return points if kind == "polygon" else None


def _annotated(entry: _Labelled, classes: Sequence[str]) -> Annotated:
    annotated = Annotated(str(entry.image), entry.size, labelled=entry.file is not None)
    for name, polygons in entry.objects:
        outline: list[Any] = [[value for point in points for value in point] for points in polygons]
        if name in classes:  # others have been reported
            annotated.add(None, classes.index(name), outline=outline)
        elif name == IGNORED:
            for category in range(len(classes)):
                annotated.add(None, category, crowd=True, outline=outline)
    return annotated
