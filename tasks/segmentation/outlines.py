"""Semantic masks drawn from the outlines of objects: COCO's, YOLO's and labelme's polygons.

Detection's readers find the images and their objects. A row holds the outlines as text; the mask is
drawn when the sample is read, so that nothing is written and the memory stays small.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
from faster_coco_eval import mask as coco_mask

from data.faults import Faults
from data.masks import IGNORE
from errors import UserError
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.labelme import load_labelme
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.instance_masks import to_rle
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData, notes_on
from tasks.segmentation.options import SegmentationOptions

BACKGROUND = "background"
BACKGROUNDS = (BACKGROUND, "_background_")  # names of classes that are the background
MARK = b'{"outlines":'  # how such a cell begins, which no image does

# Options of segmentation that detection's readers take.
SHARED = (
    "dataset",
    "data_dir",
    "class_names",
    "val_share",
    "fold",
    "val_group",
    "exif",
    "skip_unlabelled",
)

LOADERS: dict[str, Callable[[DetectionOptions, Faults], DetectionData]] = {
    "coco": load_coco,
    "yolo": load_yolo,
    "labelme": load_labelme,
}


def load_outlines(
    options: SegmentationOptions, faults: Faults, schema: datasets.Features
) -> tuple[datasets.Dataset, datasets.Dataset, list[str], tuple[str, ...]]:
    """Rows of images and of masks to be drawn, the names of the classes, and notes.

    The class 0 is the background, and the objects' classes follow in their order. An object without
    an outline is left out with a note.

    Args:
        options: ``dataset`` is a key of LOADERS.
        faults: gets what can't be read.
        schema: of the rows.

    Raises:
        UserError: see detection's readers; or no training image has an outline.
    """
    wanted = DetectionOptions(
        **{name: getattr(options, name) for name in SHARED},
        copy_paste=1.0,  # which takes masks
    )
    found = LOADERS[options.dataset](wanted, faults)
    if not any(objects["category"] for objects in found.train["objects"]):
        raise UserError(
            f"No training image of {options.data_dir} has an object with an outline: train a "
            "detector with boxes, or draw outlines."
        )
    drawn = [BACKGROUND if name in BACKGROUNDS else name for name in found.classes]
    classes = list(dict.fromkeys([BACKGROUND, *drawn]))
    ids = [classes.index(name) for name in drawn]
    rows = [_rows(split, ids, schema) for split in (found.train, found.val)]
    notes = found.notes + notes_on("train", found.train) + notes_on("val", found.val)
    return *rows, classes, notes


def _rows(
    found: datasets.Dataset, ids: Sequence[int], schema: datasets.Features
) -> datasets.Dataset:
    columns: dict[str, list[Any]] = {"image": found["image"][:], "annotation": []}
    for row in found.remove_columns("image"):
        objects = row["objects"]
        content = {
            "outlines": objects["outline"],
            "classes": [ids[category] for category in objects["category"]],
            "crowds": objects["iscrowd"],
            "size": [row["height"], row["width"]],
            "upright": row["upright"],
        }
        columns["annotation"].append({"path": None, "bytes": json.dumps(content).encode()})
    return datasets.Dataset.from_dict(columns, features=schema)


def drawing_of(cell: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is to be drawn for a mask; None if the cell holds a mask, or nothing."""
    data = cell and cell["bytes"]
    return json.loads(data) if data and data.startswith(MARK) else None


def draw_mask(drawing: dict[str, Any]) -> np.ndarray:
    """The mask of a drawing: uint8 (H, W), 0 for the background.

    Larger objects are drawn first, so that small ones are seen; a crowd's pixels are IGNORE unless
    an object covers them.
    """
    size = tuple(drawing["size"])
    mask = np.zeros(size, np.uint8)
    rles = [to_rle(outline, size) for outline in drawing["outlines"]]
    values = zip(drawing["classes"], drawing["crowds"], strict=True)
    values = [IGNORE if crowd else number for number, crowd in values]
    areas = coco_mask.area(rles) if rles else []
    order = sorted(range(len(rles)), key=lambda n: (values[n] != IGNORE, -int(areas[n])))
    for number in order:  # one at a time: together they could fill the memory
        mask[coco_mask.decode(rles[number]).astype(bool)] = values[number]
    return mask
