"""Where detection data comes from: the built-in shapes, and the table of the other sources.

The layouts are shown in docs/data.md. No picture is decoded here; where annotations don't say how
large a picture is, its header is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data import synthetic
from data.class_lists import read_class_file
from data.sources import evenly_spaced, source_called, spread
from errors import UserError
from tasks.detection import instance_masks
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.hub import load_hub
from tasks.detection.formats.voc import load_voc
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData, dropped_boxes_note, to_rows


def load_data(options: DetectionOptions) -> DetectionData:
    """Find the data set that the options name; no image is decoded yet.

    Raises:
        UserError: there is no such data set, it isn't in the layout expected, or it has no object
            to learn from.
    """
    names = options.class_names
    if isinstance(names, str):
        names, _ = read_class_file(Path(names).expanduser())
    if names is not None and len(set(names)) < max(1, len(names)):
        raise UserError("--class_names must be at least one name, and none of them twice.")
    with_masks = options.has_masks or options.copy_paste > 0
    data = source_called(options.dataset, SOURCES)(options, names, with_masks)
    train, val = spread(data.train, options.limit_train), spread(data.val, options.limit_val)
    notes = dropped_boxes_note("train", train) + dropped_boxes_note("val", val)
    if not any(row["category"] for row in train["objects"]):
        masks = " with a mask" if with_masks else ""
        raise UserError(
            f"No training image of {options.data_dir or options.dataset} has a usable object"
            f"{masks}: check the annotations."
        )
    return replace(data, train=train, val=val, notes=data.notes + notes, with_masks=with_masks)


def load_synthetic(options: DetectionOptions, class_names: None, with_masks: bool) -> DetectionData:
    """Shapes on textured grounds, made here; of a limited split only what is kept."""
    classes, size = list(synthetic.SHAPES), tuple(options.image_size)
    splits = [("train", 512, options.limit_train), ("val", 128, options.limit_val)]
    train, val = (
        to_rows(_draw(split, kept, [options.seed, number], size), classes, with_masks)
        for number, (split, kept) in enumerate(
            (split, evenly_spaced(count, limit)) for split, count, limit in splits
        )
    )
    return DetectionData(train, val, classes, list(synthetic.COLORS[1:]))


def _draw(
    split: str, numbers: np.ndarray, seed: list[int], size: tuple[int, int]
) -> Iterator[Annotated]:
    samples = synthetic.detection_samples(numbers, seed, size)
    for number, (image, kinds, masks) in zip(numbers, samples, strict=True):
        name = f"synthetic/{split}/{number:04d}.png"
        picture = Annotated({"path": name, "bytes": image}, size, int(number))
        for kind, mask in zip(kinds, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            top, left = int(rows[0]), int(columns[0])
            box = (left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)
            outline = instance_masks.encode(mask)
            picture.add(box, kind, area=float(mask.sum()), outline=outline)
        yield picture


SOURCES: dict[str, Callable[..., DetectionData]] = {
    "synthetic": load_synthetic,
    "coco": load_coco,
    "voc": load_voc,
    "yolo": load_yolo,
    "hub": load_hub,
}
