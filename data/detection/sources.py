"""Where detection data comes from: the built-in shapes, and the table of the other sources.

The layouts are shown in docs/data.md. No picture is decoded here; where annotations don't say how
large a picture is, its header is read.
"""

from collections.abc import Callable, Iterator

import numpy as np

from data import synthetic
from data.detection import instance_masks
from data.detection.coco_format import load_coco
from data.detection.rows import Annotated, DetectionData, to_rows
from data.detection.voc_format import load_voc
from data.detection.yolo_format import load_yolo
from data.sources import evenly_spaced


def load_synthetic(
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    with_masks: bool = False,
    **_: object,
) -> DetectionData:
    """Shapes on textured grounds, made here; of a limited split only what is kept."""
    classes = list(synthetic.SHAPES)
    size = image_size or (128, 128)
    train, val = (
        to_rows(_draw(split, kept, [seed, number], size), classes, with_masks)
        for number, (split, kept) in enumerate(
            (
                ("train", evenly_spaced(512, limit_train)),
                ("val", evenly_spaced(128, limit_val)),
            )
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
}
