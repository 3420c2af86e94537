"""Where detection data comes from: the table of the sources.

docs/data.md shows the layouts. No image is decoded here; where annotations don't say how large an
image is, its header is read.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc

from data.balance import repeat_factors
from data.decode import cell_name
from data.faults import Faults
from data.notes import class_notes
from data.sources import load_from
from errors import UserError
from tasks.detection.formats.boxes_csv import load_csv
from tasks.detection.formats.by_datumaro import load_datumaro
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.hub import load_hub
from tasks.detection.formats.labelme import load_labelme
from tasks.detection.formats.voc import load_voc
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.formats.yolo_files import reaches_outside
from tasks.detection.index_cache import in_cache
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData, notes_on
from tasks.detection.synthetic import load_synthetic

SOURCES: dict[str, Callable[[DetectionOptions, Faults], DetectionData]] = {
    "synthetic": load_synthetic,
    "coco": in_cache(load_coco),
    "voc": in_cache(load_voc),
    "yolo": in_cache(load_yolo, reaches_outside),
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
    counts = {split: _count_objects(data, split) for split in ("train", "val")}
    for split in counts:
        if not any(counts[split]):
            sentence = _no_object(options, data, split)
            if faults is None:
                raise UserError(sentence)
            faults.add(options.data_dir or options.dataset, sentence)
    notes += class_notes(data.classes, counts["train"], counts["val"], "object")
    if options.balance_classes:
        most = repeat_factors([objects["category"] for objects in data.train["objects"]]).max()
        done = f"images of rare classes are seen up to {most:.1f} times as often"
        if most < 1.05:
            done = "hardly any image is seen more often, since classes are in about as many images"
        notes += (f"train: {done} (--balance_classes).",)
    return replace(data, notes=notes)


def _count_objects(data: DetectionData, split: str) -> list[int]:
    """The number of a split's objects of each class, without crowds."""
    table = getattr(data, split).select_columns("objects").with_format("arrow")[:]
    category, crowd = (
        np.asarray(pc.list_flatten(pc.struct_field(table["objects"], name)))
        for name in ("category", "iscrowd")
    )
    return np.bincount(category[crowd == 0], minlength=len(data.classes)).tolist()


def _no_object(options: DetectionOptions, data: DetectionData, split: str) -> str:
    """Why a split has no object, with the first that was left out, or an image without any."""
    rows, where = getattr(data, split), options.data_dir or options.dataset
    limited = {"train": options.limit_train, "val": options.limit_val}[split]
    kept = f" of the {len(rows)} that --limit_{split} leaves" if limited else ""
    masks = " with a mask" if options.needs_masks else ""
    rejected = ((n, reasons[0]) for n, reasons in enumerate(rows["dropped"]) if reasons)
    number, reason = next(rejected, (0, "has no annotation"))
    image = cell_name(rows[number]["image"], f"sample {number}") if len(rows) else "no image"
    name = {"train": "training", "val": "validation"}[split]
    return (
        f"No {name} image{kept} of {where} has a usable object{masks} ({image}: {reason}): correct "
        "the annotations, or the folder that they are looked for in."
    )
