"""Detection data in YOLO's layout: a text file per image, and the names in data.yaml."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.faults import Faults
from data.folders import data_root
from data.numbers import whole
from data.paths import relative
from data.textfiles import read_text
from errors import UserError
from tasks.detection.formats.reading import given_class_names
from tasks.detection.formats.splits import Place, divide, find_splits, left_out_notes, refuse_shared
from tasks.detection.formats.yolo_files import (
    EXPECTED,
    Description,
    class_names,
    find_all,
    find_images,
    label_file,
    read_description,
    unused_labels_note,
)
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData

MOST_CLASSES = 10_000  # a higher number without a name is a mistake
OUTSIDE = 2.0  # share of the image from which on a number is in other units

Line = tuple[int, list[float]]  # class id, and shares of the image's width and height


@dataclass(frozen=True)
class _Image:
    """An image, its text file, whether that is there, and the lines in it."""

    image: Path
    file: Path
    labelled: bool
    lines: list[Line]


def load_yolo(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Folders of images and of text files: a line ``class cx cy w h`` per object, or a polygon.

    All numbers are shares of the image's width and height. ``class x y x y x y ...`` is a
    polygon; its box lies around it. Where data.yaml has kpt_shape, what follows a box are
    keypoints, which are left out. An image without a text file has no objects. The splits and the
    names are those of data.yaml, or of Darknet's obj.data, if there is one.

    Raises:
        UserError: a file or folder is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED)
    description = read_description(root)
    splits = find_splits(
        options,
        root,
        partial(find_images, root, description, faults=faults),
        lambda: find_all(root, faults),
        EXPECTED,
    )

    def read(place: Place) -> list[_Image]:
        refuse_shared([(image, label_file(root, image)) for image in place.found], faults)
        return _read(root, place, description.keypoints, faults)

    parsed, notes = divide(options, root, splits, read, lambda entry: entry.image)
    lines = [line for split in parsed for entry in split for line in entry.lines]
    classes, more = _classes(options, root, description, lines)
    if description.keypoints and lines:
        more += ("The objects have keypoints (kpt_shape), which are left out.",)
    else:
        _refuse_keypoints(root, lines)
    if not options.skip_unlabelled:
        more += _unlabelled_note(root, [entry for split in parsed for entry in split])
    more += left_out_notes(root, splits)
    more += unused_labels_note(root, [entry.file for split in parsed for entry in split])
    annotated = [_annotated(split, classes, faults) for split in parsed]
    return make_data(options, annotated, classes, faults, [*notes, *more])


def _read(root: Path, place: Place, keypoints: int, faults: Faults) -> list[_Image]:
    """The images of a split with their lines.

    Raises:
        UserError: no image has a text file, which means that they are somewhere else.
    """
    entries = []
    for image in place.found:
        file = label_file(root, image)
        labelled = file.is_file()
        lines = _parse(file, keypoints, faults) if labelled else []
        entries.append(_Image(image, file, labelled, lines))
    if not any(entry.labelled for entry in entries):
        raise UserError(
            f"None of the {len(entries)} images of the split {place.name or 'train'} has a text "
            f"file: that of {entries[0].image} would be {entries[0].file}, or next to the image."
        )
    return entries


def _unlabelled_note(root: Path, entries: Sequence[_Image]) -> tuple[str, ...]:
    """A note that counts the images without a text file, if there are any."""
    without = [entry.image for entry in entries if not entry.labelled]
    if not without:
        return ()
    return (
        f"{len(without)} of {len(entries)} images have no text file, and so no objects, such as "
        f"{relative(root, without[0])}: --skip_unlabelled true leaves them out.",
    )


def _classes(
    options: DetectionOptions, root: Path, description: Description, lines: Sequence[Line]
) -> tuple[list[str], tuple[str, ...]]:
    classes = given_class_names(options, numbered=True) or class_names(root, description)
    if classes:
        return classes, ()
    highest = max((category for category, _ in lines), default=0)
    if highest >= MOST_CLASSES:
        raise UserError(
            f"The labels in {root} go up to class {highest}, and no class names were given: "
            "correct the number, or write the names into data.yaml."
        )
    classes = [f"class {number}" for number in range(highest + 1)]
    return classes, (f"No class names were given: the labels show {len(classes)} classes.",)


def _parse(file: Path, keypoints: int, faults: Faults) -> list[Line]:
    lines: list[Line] = []
    content = ""
    with faults.of(file):
        content = read_text(file)
    for number, text in enumerate(content.splitlines(), start=1):
        if fields := text.split():
            with faults.of(file, f"line {number}"):
                lines.append(_line(fields, keypoints, f"Line {number} of {file}"))
    return lines


def _line(fields: list[str], keypoints: int, where: str) -> Line:
    """The class and the numbers of a line: 4 of a box, or at least 6 of a polygon.

    Raises:
        UserError: it has another form.
    """
    try:
        category, values = whole(fields[0]), [float(value) for value in fields[1:]]
    except ValueError:
        category, values = -1, []
    finite = all(map(math.isfinite, values))
    is_polygon = not keypoints and len(values) >= 6 and len(values) % 2 == 0
    if category < 0 or not finite or not (len(values) in (4, 4 + keypoints) or is_polygon):
        more = f" and {keypoints} numbers of keypoints (kpt_shape)" if keypoints else ""
        form = f"'class cx cy w h'{more}, or a class and the points of a polygon"
        raise UserError(f"{where} is '{' '.join(fields):.60}': it must be {form}.")
    values = values[:4] if keypoints else values
    wrong = next((value for value in values if not 1 - OUTSIDE <= value < OUTSIDE), None)
    if wrong is not None:
        raise UserError(
            f"{where} holds {wrong:g}, but its numbers must be shares of the image's width and "
            "height, from 0 to 1: divide pixels by them; keypoints need kpt_shape in data.yaml."
        )
    return category, values


def _refuse_keypoints(root: Path, lines: Iterable[Line]) -> None:
    """Refuse lines that all look like a box with keypoints, rather than take them for polygons.

    Raises:
        UserError: every line has the same number of keypoints, each with a visibility of 0 or 1.
    """
    long = [values for _, values in lines if len(values) > 4]
    if len(long) < 2 or len(set(map(len, long))) > 1 or (len(long[0]) - 4) % 3:
        return
    if all(value in (0, 1) for values in long for value in values[6::3]):
        raise UserError(
            f"The labels in {root} look like boxes with {(len(long[0]) - 4) // 3} keypoints each: "
            "write kpt_shape, their number and 3, into data.yaml."
        )


def _annotated(
    entries: Sequence[_Image], classes: Sequence[str], faults: Faults
) -> list[Annotated]:
    images = []
    for entry in entries:
        annotated = Annotated(str(entry.image), in_shares=True, labelled=entry.labelled)
        for category, values in entry.lines:
            if category < len(classes):
                _add(annotated, category, values)
                continue
            sentence = (
                f"{entry.file} has the class {category}, but there are {len(classes)} class names, "
                "numbered from 0: correct the file or the names."
            )
            faults.add(entry.file, sentence)
        images.append(annotated)
    return images


def _add(image: Annotated, category: int, values: list[float]) -> None:
    if len(values) == 4:
        x, y, w, h = values
        image.add((x - w / 2, y - h / 2, w, h), category)
    else:
        image.add(None, category, outline=[[min(max(value, 0.0), 1.0) for value in values]])
