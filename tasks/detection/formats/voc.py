"""Detection data in Pascal VOC's layout: an XML file per image, with lists of names or folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from data.class_lists import VOC
from data.faults import Faults
from data.folders import data_root
from errors import UserError
from tasks.detection.formats.reading import MALFORMED, flag, given_class_names, pixels, reason
from tasks.detection.formats.splits import Place, divide, find_splits, left_out_notes, refuse_shared
from tasks.detection.formats.voc_files import EXPECTED, Pair, find_all, find_pairs, unused_xml_note
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, Box, DetectionData


@dataclass
class _Annotation:
    """What an XML file says.

    Attributes:
        image: its image.
        file: the XML file; None where there is none.
        size: (height, width), or None where it isn't given.
        objects: of each its name, its box (x, y, width, height) and whether it is difficult.
    """

    image: Path
    file: Path | None
    size: tuple[int, int] | None
    objects: list[tuple[str, Box, bool]]


def load_voc(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Pascal VOC 2007 and 2012, and what labelling tools write in XML files of this kind.

    An object marked difficult is treated as a crowd: training doesn't learn it and evaluation
    ignores it, as VOC's own does. Corners count pixels from 1 and are part of the box, as VOC
    defines them. The classes are ``--class_names``, or VOC's 20 in a folder named VOC20.., or else
    the names that occur, sorted. Data without a validation list is evaluated on the test list.

    Raises:
        UserError: a file or folder is missing, or holds something that can't be used.
    """
    root = data_root(options, EXPECTED, "VOCdevkit/VOC2012", "VOC2012", "VOC2007")
    splits = find_splits(
        options,
        root,
        lambda names: find_pairs(root, names, faults),
        lambda: find_all(root, faults),
        EXPECTED,
    )

    def read(place: Place) -> list[_Annotation]:
        refuse_shared(place.found, faults)
        return _read(place, options.skip_unlabelled, faults)

    parsed, notes = divide(options, root, splits, read, lambda entry: entry.image)
    classes = _classes(root, given_class_names(options), parsed, faults)
    notes += left_out_notes(root, splits)
    notes += unused_xml_note([(a.image, a.file) for split in parsed for a in split])
    annotated = [[_annotated(entry, classes) for entry in split] for split in parsed]
    return make_data(options, annotated, classes, faults, notes)


def _read(place: Place, skip_unlabelled: bool, faults: Faults) -> list[_Annotation]:
    pairs: list[Pair] = place.found
    annotations = []
    for image, file in pairs:
        if file.is_file():
            with faults.of(file):
                annotations.append(_parse(image, file))
        elif skip_unlabelled:
            annotations.append(_Annotation(image, None, None, []))
        else:
            sentence = (
                f"There is no {file}: add it, take its image off the list, or leave out all images "
                "without one with --skip_unlabelled true."
            )
            faults.add(file, sentence)
    return annotations


def _parse(image: Path, file: Path) -> _Annotation:
    try:
        tree = ElementTree.parse(file).getroot()
        width, height = (tree.findtext(f"size/{side}") for side in ("width", "height"))
        size = (pixels(height), pixels(width))
        objects = [_object(entry) for entry in tree.iter("object")]
    except (ElementTree.ParseError, OSError, RecursionError, *MALFORMED) as error:
        raise UserError(
            f"{file} is not a valid VOC annotation ({reason(error)}): correct it, or take its "
            "image off the list."
        ) from None
    return _Annotation(image, file, size if all(size) else None, objects)


def _object(entry: ElementTree.Element) -> tuple[str, Box, bool]:
    name = (entry.findtext("name") or "").strip()
    corners = [entry.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in corners:
        raise ValueError("an object without name or box")
    left, top, right, bottom = map(float, corners)
    # A box whose corners coincide is a slip of a tool, not a box of one pixel.
    width = right - left + 1 if right != left else 0.0
    height = bottom - top + 1 if bottom != top else 0.0
    return name, (left - 1, top - 1, width, height), flag(entry.findtext("difficult"))


def _classes(
    root: Path, class_names: Sequence[str] | None, splits: list[list[_Annotation]], faults: Faults
) -> list[str]:
    known = class_names
    if known is None and root.name.startswith("VOC20"):
        known = VOC[1:]
    annotations = [annotation for split in splits for annotation in split]
    if known is None:
        found = {name for annotation in annotations for name, _, _ in annotation.objects}
        if not found:
            raise UserError(f"The annotations in {root} hold no object: there is nothing to learn.")
        return sorted(found)
    for annotation in annotations:
        for name in dict.fromkeys(name for name, _, _ in annotation.objects):
            if name not in known:
                sentence = (
                    f"{annotation.file} has an object of the class {name}, which is none of "
                    f"{', '.join(known)}: correct it, or give all names with --class_names."
                )
                faults.add(annotation.file, sentence)
    return list(known)


def _annotated(annotation: _Annotation, classes: list[str]) -> Annotated:
    annotated = Annotated(
        str(annotation.image), annotation.size, labelled=annotation.file is not None
    )
    for name, box, difficult in annotation.objects:
        if name in classes:  # others have been reported
            annotated.add(box, classes.index(name), crowd=difficult)
    return annotated
