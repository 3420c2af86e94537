"""Where detection data comes from: the table of the sources.

docs/data.md shows the layouts. No image is decoded here; where annotations don't say how large an
image is, its header is read.
"""

from collections.abc import Callable
from dataclasses import replace

import datasets

from data.decode import cell_name
from data.faults import Faults
from data.folders import EXAMPLES
from data.sources import load_from
from errors import UserError
from tasks.detection.formats.boxes_csv import load_csv
from tasks.detection.formats.by_datumaro import load_datumaro
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.hub import load_hub
from tasks.detection.formats.labelme import load_labelme
from tasks.detection.formats.voc import load_voc
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData, notes_on
from tasks.detection.synthetic import load_synthetic

SOURCES: dict[str, Callable[[DetectionOptions, Faults], DetectionData]] = {
    "synthetic": load_synthetic,
    "coco": load_coco,
    "voc": load_voc,
    "yolo": load_yolo,
    "csv": load_csv,
    "labelme": load_labelme,
    "datumaro": load_datumaro,
    "hub": load_hub,
}


def load_data(options: DetectionOptions, faults: Faults | None = None) -> DetectionData:
    """Find the data set that the options name; no image is decoded yet.

    Raises:
        UserError: there is no such data set, it isn't in the layout expected, or a split has no
            object to learn or to find.
    """
    data = load_from(SOURCES, options, faults)
    notes = data.notes + notes_on("train", data.train) + notes_on("val", data.val)
    _count_objects(options, data, "train")
    counts = _count_objects(options, data, "val")
    missing = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if missing:
        shown = ", ".join(missing[:EXAMPLES]) + (" and others" if len(missing) > EXAMPLES else "")
        notes += (
            f"val: {len(missing)} of {len(data.classes)} classes have no object, and count in no "
            f"mean: {shown}.",
        )
    return replace(data, notes=notes)


def _count_objects(options: DetectionOptions, data: DetectionData, split: str) -> list[int]:
    """The number of a split's objects of each class, without crowds.

    Raises:
        UserError: it has none.
    """
    rows, counts = getattr(data, split), [0] * len(data.classes)
    for objects in rows["objects"]:
        for category, crowd in zip(objects["category"], objects["iscrowd"], strict=True):
            counts[category] += not crowd
    if any(counts):
        return counts
    split_name = {"train": "training", "val": "validation"}[split]
    masks = " with a mask" if options.needs_masks else ""
    limited = f" of the {len(rows)} that --limit_{split} leaves" if _limit(options, split) else ""
    raise UserError(
        f"No {split_name} image{limited} of {options.data_dir or options.dataset} has a usable "
        f"object{masks}, {_first_reason(rows)}: check the annotations."
    )


def _limit(options: DetectionOptions, split: str) -> int:
    return options.limit_train if split == "train" else options.limit_val


def _first_reason(rows: datasets.Dataset) -> str:
    """The first object of a split that was left out, and why; or an image without any."""
    for number, reasons in enumerate(rows["dropped"]):
        if reasons:
            return f"since {reasons[0]} in {cell_name(rows[number]['image'], f'sample {number}')}"
    if not len(rows):
        return "since it has no images"
    return f"such as {cell_name(rows[0]['image'], 'its first image')}, which is given none"
