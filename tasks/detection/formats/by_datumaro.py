"""Detection data in whatever format datumaro reads: CVAT, KITTI, Open Images, WIDER Face, ...

datumaro is an extra (requirements-extra.txt), since it brings OpenCV, pandas and older versions of
Pillow and pyarrow. It is imported when it is asked for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from data.faults import Faults
from data.folders import data_root
from errors import UserError
from tasks.detection import instance_masks
from tasks.detection.formats.reading import MALFORMED, flag, given_class_names, reason
from tasks.detection.formats.splits import Place, divide, find_splits
from tasks.detection.make_rows import make_data
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData

EXPECTED = "a data set in a format that datumaro reads"
# Names of datumaro's kinds of annotations that are objects; the rest has no area.
BOXES = ("bbox", "rotated_bbox", "ellipse", "cuboid_2d")
OUTLINES = ("polygon", "mask")
CROWDS = ("is_crowd", "difficult", "ignore", "invalid")


@dataclass
class _Item:
    """An image with its objects: of each the class, the box and the outline or None."""

    image: Path
    objects: list[tuple[str, list[float], bool, Any]] = field(default_factory=list)


def load_datumaro(options: DetectionOptions, faults: Faults) -> DetectionData:
    """What datumaro reads: its boxes, polygons and masks are the objects.

    A box in one group with an outline of the same class is the same object. The classes are
    ``--class_names``, or those of the data set that have an object, in its order.

    Raises:
        UserError: datumaro isn't installed, or can't read the data.
    """
    datumaro = import_datumaro()
    root = data_root(options, EXPECTED)
    dataset = _open(datumaro, root, options.data_format)
    names = [category.name for category in _label_categories(datumaro, dataset)]
    by_split: dict[str, list[Any]] = {}
    for item in dataset:
        by_split.setdefault(item.subset, []).append(item)

    def find(split_names: Sequence[str]) -> Place | None:
        cased = {name.lower(): name for name in by_split}
        split = next((name for name in split_names if name in cased), None)
        return split and Place(split, by_split[cased[split]])

    def whole() -> Place | None:
        items = [item for items in by_split.values() for item in items]
        return Place("", items) if items else None

    left_out: Counter[str] = Counter()

    def read(place: Place) -> list[_Item]:
        return _read(root, place.found, names, left_out, faults)

    splits = find_splits(options, root, find, whole, EXPECTED)
    parsed, notes = divide(options, root, splits, read, lambda item: item.image)
    used = {name for split in parsed for item in split for name, *_ in item.objects}
    classes = given_class_names(options) or [name for name in names if name in used]
    unknown = sorted(used - set(classes))
    if unknown:
        raise UserError(
            f"{root} has objects of the class {unknown[0]}, which is none of {', '.join(classes)}: "
            "give all names with --class_names."
        )
    if not classes:
        raise UserError(f"datumaro finds no object in {root}: there is nothing to learn.")
    if left_out:
        counted = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        notes += (f"Annotations that are no objects with an area are left out: {counted}.",)
    annotated = [[_annotated(item, classes) for item in split] for split in parsed]
    return make_data(options, annotated, classes, faults, notes)


def import_datumaro() -> ModuleType:
    """The library.

    Raises:
        UserError: it isn't installed.
    """
    try:
        import datumaro
    except ImportError as error:
        raise UserError(
            f"--dataset datumaro needs the package datumaro ({error}): pip install -r "
            "requirements-extra.txt."
        ) from None
    return datumaro


def _open(datumaro: ModuleType, root: Path, data_format: str | None) -> Any:
    environment = datumaro.components.environment.Environment()
    if data_format is None:
        found = environment.detect_dataset(str(root))
        if len(found) != 1:
            which = f"any of {', '.join(found)}" if found else "none that datumaro knows"
            raise UserError(
                f"The format of {root} could be {which}: name it with --data_format, for example "
                "cvat, kitti, label_me, open_images or wider_face."
            )
        (data_format,) = found
    elif data_format not in environment.importers:
        raise UserError(
            f"datumaro reads no format {data_format}: --data_format takes one of "
            f"{', '.join(sorted(environment.importers))}."
        )
    try:
        dataset = datumaro.Dataset.import_from(str(root), data_format)
        dataset.init_cache()
    except Exception as error:  # its importers raise many types
        cause = error.__cause__ or error  # the importers' own errors only repeat the path
        raise UserError(
            f"datumaro can't read {root} as {data_format} ({type(cause).__name__}: "
            f"{reason(cause):.200}): "
            "check the layout, or name another --data_format."
        ) from error
    return dataset


def _label_categories(datumaro: ModuleType, dataset: Any) -> Sequence[Any]:
    found = dataset.categories().get(datumaro.AnnotationType.label)
    return found.items if found else ()


def _read(
    root: Path, items: Sequence[Any], names: Sequence[str], left_out: Counter[str], faults: Faults
) -> list[_Item]:
    read = []
    for item in items:
        path = getattr(item.media, "path", None)
        if not path or not Path(path).is_file():
            sentence = (
                f"{root} has annotations of {item.id}, whose image isn't there: restore it, or "
                "remove them."
            )
            faults.add(item.id, sentence)
            continue
        try:
            objects = _objects(item.annotations, names, left_out)
        except MALFORMED as error:
            sentence = f"{item.id} has an object that can't be used ({reason(error)}): correct it."
            faults.add(item.id, sentence)
            continue
        read.append(_Item(Path(path), objects))
    return read


def _objects(
    annotations: Sequence[Any], names: Sequence[str], left_out: Counter[str]
) -> list[tuple[str, list[float], bool, Any]]:
    outlined = {
        (entry.group, entry.label)
        for entry in annotations
        if entry.group and entry.type.name in OUTLINES
    }
    objects = []
    for entry in annotations:
        kind = entry.type.name
        if kind in BOXES and (entry.group, entry.label) in outlined:
            continue  # the same object
        label = getattr(entry, "label", None)
        if kind not in (*BOXES, *OUTLINES):
            left_out[kind] += 1
        elif label is None:
            left_out[f"{kind} without a class"] += 1
        else:
            outline = None
            if kind == "polygon":
                outline = [[float(value) for value in entry.points]]
            elif kind == "mask":
                outline = instance_masks.encode(entry.image)
            box = [float(value) for value in entry.get_bbox()]
            crowd = any(flag(entry.attributes.get(name)) for name in CROWDS)
            objects.append((names[label], box, crowd, outline))
    return objects


def _annotated(item: _Item, classes: Sequence[str]) -> Annotated:
    annotated = Annotated(str(item.image))
    for name, box, crowd, outline in item.objects:
        annotated.add(box, classes.index(name), crowd=crowd, outline=outline)
    return annotated
