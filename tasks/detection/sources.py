"""Where detection data comes from: the table of the sources.

docs/data.md shows the layouts. No image is decoded here; where annotations don't say how large an
image is, its header is read.
"""

from collections.abc import Callable
from dataclasses import replace

from data.sources import load_from
from errors import UserError
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.hub import load_hub
from tasks.detection.formats.voc import load_voc
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.index_cache import in_cache
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData, dropped_boxes_note
from tasks.detection.synthetic import load_synthetic

SOURCES: dict[str, Callable[[DetectionOptions], DetectionData]] = {
    "synthetic": load_synthetic,
    "coco": in_cache(load_coco),
    "voc": in_cache(load_voc),
    "yolo": in_cache(load_yolo),
    "hub": load_hub,
}


def load_data(options: DetectionOptions) -> DetectionData:
    """Find the data set that the options name; no image is decoded yet.

    Raises:
        UserError: there is no such data set, it isn't in the layout expected, or it has no object
            to learn from.
    """
    data = load_from(SOURCES, options)
    notes = dropped_boxes_note("train", data.train) + dropped_boxes_note("val", data.val)
    if not any(row["category"] for row in data.train["objects"]):
        masks = " with a mask" if options.needs_masks else ""
        raise UserError(
            f"No training image of {options.data_dir or options.dataset} has a usable object"
            f"{masks}: check the annotations."
        )
    return replace(data, notes=data.notes + notes)
