"""Where detection data comes from: the table of the sources.

docs/data.md shows the layouts. No image is decoded here; where annotations don't say how large an
image is, its header is read.
"""

from collections.abc import Callable
from dataclasses import replace

from data.decode import cell_name
from data.faults import Faults
from data.sources import load_from
from errors import UserError
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.hub import load_hub
from tasks.detection.formats.voc import load_voc
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData, dropped_boxes_note
from tasks.detection.synthetic import load_synthetic

SOURCES: dict[str, Callable[[DetectionOptions, Faults], DetectionData]] = {
    "synthetic": load_synthetic,
    "coco": load_coco,
    "voc": load_voc,
    "yolo": load_yolo,
    "hub": load_hub,
}


def load_data(options: DetectionOptions, faults: Faults | None = None) -> DetectionData:
    """Find the data set that the options name; no image is decoded yet.

    Raises:
        UserError: there is no such data set, it isn't in the layout expected, or it has no object
            to learn from.
    """
    data = load_from(SOURCES, options, faults)
    notes = dropped_boxes_note("train", data.train) + dropped_boxes_note("val", data.val)
    if not any(row["category"] for row in data.train["objects"]):
        masks = " with a mask" if options.needs_masks else ""
        where = options.data_dir or options.dataset
        sentence = (
            f"No training image of {where} has a usable object{masks} ({_first_reason(data)}): "
            "correct the annotations, or the folder that they are looked for in."
        )
        if faults is None:
            raise UserError(sentence)
        faults.add(where, sentence)
    return replace(data, notes=data.notes + notes)


def _first_reason(data: DetectionData) -> str:
    """Why the first training image has no object."""
    rejected = ((n, reasons[0]) for n, reasons in enumerate(data.train["dropped"]) if reasons)
    number, reason = next(rejected, (0, "has no annotation"))
    return f"{cell_name(data.train[number]['image'], f'sample {number}')}: {reason}"
