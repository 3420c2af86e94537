"""Detection data in Pascal VOC's layout: an XML file per image, and lists of names per split."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from data.class_lists import VOC
from data.faults import Faults
from data.folders import (
    IMAGE_SUFFIXES,
    TRAIN,
    VAL,
    data_root,
    image_files,
    require_folders,
)
from data.textfiles import read_text
from errors import UserError
from tasks.detection.formats.reading import MALFORMED, given_class_names, pixels, reason
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData, class_colors, to_rows

EXPECTED = "JPEGImages, Annotations and ImageSets/Main"
FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")


@dataclass
class _Annotation:
    """What an XML file says.

    Attributes:
        file: the XML file.
        size: (height, width), or None where it isn't given.
        objects: of each its name, its box (x, y, width, height) and whether it is difficult.
    """

    file: Path
    size: tuple[int, int] | None
    objects: list[tuple[str, tuple[float, float, float, float], bool]]


def load_voc(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Pascal VOC 2007 and 2012, and what labelling tools write in this layout.

    An object marked difficult is treated as a crowd: training doesn't learn it and evaluation
    ignores it, as VOC's own does. Corners count pixels from 1 and are part of the box, as VOC
    defines them. The classes are ``--class_names``, or VOC's 20 in a folder named VOC20.., or else
    the names that occur, sorted. Data without a validation list is evaluated on the test list.

    Raises:
        UserError: a file or folder is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED, "VOCdevkit/VOC2012", "VOC2012", "VOC2007")
    images, annotations, lists = require_folders("voc", root, EXPECTED, *FOLDERS)
    files = dict(image_files(images, faults))
    splits = []
    for split_names in (TRAIN, VAL):
        names = _listed(lists, split_names, files)
        missing = next((name for name in names if name not in files), None)
        if missing is not None:
            raise UserError(f"{images} has no image {missing} although {lists} lists it: add it.")
        splits.append([(files[name], _parse(annotations / f"{name}.xml")) for name in names])
    classes = _classes(root, given_class_names(options), splits)
    train, val = (
        to_rows([_annotated(*image, classes) for image in split], classes, with_masks=False)
        for split in splits
    )
    return DetectionData(train, val, classes, class_colors(len(classes)))


def _listed(lists: Path, split_names: Sequence[str], known: Container[str]) -> list[str]:
    file = next((f for name in split_names if (f := lists / f"{name}.txt").is_file()), None)
    if file is None:
        raise UserError(
            f"{lists} has no {split_names[0]}.txt: write the names of the split's images into it, "
            "one per line, without suffix."
        )
    names = [_name(line.strip(), known) for line in read_text(file).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{file} is empty: write the names of the split's images into it.")
    return names


def _name(line: str, known: Container[str]) -> str:
    """The image that a line names; lists may have suffixes, or a mark per image (-1, 0 or 1)."""
    plain = line[: -len(Path(line).suffix)] if Path(line).suffix.lower() in IMAGE_SUFFIXES else line
    listed, _, shown = line.rpartition(" ")
    candidates = [line, plain, *([listed.strip()] if shown in ("-1", "0", "1") else [])]
    return next((name for name in candidates if name in known), line)


def _parse(file: Path) -> _Annotation:
    if not file.is_file():
        raise UserError(f"There is no {file}: add it, or take its image off the list.")
    try:
        tree = ElementTree.parse(file).getroot()
        width, height = (tree.findtext(f"size/{side}") for side in ("width", "height"))
        size = (pixels(height), pixels(width))
        objects = [_object(entry) for entry in tree.iter("object")]
    except (ElementTree.ParseError, *MALFORMED) as error:
        raise UserError(
            f"{file} is not a valid VOC annotation ({reason(error)}): correct it, or take its "
            "image off the list."
        ) from None
    return _Annotation(file, size if all(size) else None, objects)


def _object(entry: ElementTree.Element) -> tuple:
    name = (entry.findtext("name") or "").strip()
    corners = [entry.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in corners:
        raise ValueError("an object without name or box")
    left, top, right, bottom = map(float, corners)
    # A box whose corners coincide is a slip of a tool, not a box of one pixel.
    width = right - left + 1 if right != left else 0.0
    height = bottom - top + 1 if bottom != top else 0.0
    difficult = (entry.findtext("difficult") or "0").strip() == "1"
    return name, (left - 1, top - 1, width, height), difficult


def _classes(root: Path, class_names: Sequence[str] | None, splits: list) -> list[str]:
    found: dict[str, Path] = {}
    for split in splits:
        for _, annotation in split:
            for name, _, _ in annotation.objects:
                found.setdefault(name, annotation.file)
    known = class_names
    if known is None and root.name.startswith("VOC20"):
        known = VOC[1:]
    if known is None:
        if not found:
            raise UserError(f"The annotations in {root} hold no object: there is nothing to learn.")
        return sorted(found)
    for name, file in found.items():
        if name not in known:
            raise UserError(
                f"{file} has an object of the class {name}, which is none of {', '.join(known)}: "
                "correct it, or give all names with --class_names."
            )
    return list(known)


def _annotated(image: Path, annotation: _Annotation, classes: list[str]) -> Annotated:
    annotated = Annotated(str(image), annotation.size)
    for name, box, difficult in annotation.objects:
        annotated.add(box, classes.index(name), crowd=difficult)
    return annotated
