"""A small data set in COCO's layout, with what real ones have: gaps, crowds, an unused class."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data import synthetic

CATEGORIES = {7: "disk", 9: "square", 12: "nowhere", 20: "triangle"}  # ids need not be dense
SIZE = (48, 64)


def write_coco(
    folder: Path,
    train: int = 40,
    val: int = 16,
    empty: float = 0.6,
    empty_val: float = 0.2,
    classes: int = 4,
) -> Path:
    """Write images and their objects.

    Args:
        folder: where.
        train: number of training images.
        val: number of validation images.
        empty: share of the training images without an object.
        empty_val: the same for validation.
        classes: how many of the categories to declare; only those but "nowhere" have objects.
    """
    categories = dict(list(CATEGORIES.items())[:classes])
    (folder / "annotations").mkdir(parents=True)
    for split, count, empty_share in (("train2017", train, empty), ("val2017", val, empty_val)):
        rng = np.random.default_rng(count)
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            shown = 0 if rng.uniform() < empty_share else int(rng.integers(1, 4))
            ids = [i for i in categories if categories[i] != "nowhere"]
            kinds = [ids[k] for k in rng.integers(len(ids), size=shown)]
            shapes = [
                synthetic.Shape(
                    categories[kind],
                    center=(rng.uniform(12, 36), rng.uniform(12, 52)),
                    radius=rng.uniform(7, 14),
                    angle=rng.uniform(0, 6),
                )
                for kind in kinds
            ]
            name = f"{number:03d}.png"
            Image.fromarray(synthetic.draw(rng, shapes, SIZE).image).save(folder / split / name)
            images.append({"id": 100 + number, "file_name": name, "height": 48, "width": 64})
            for kind, shape in zip(kinds, shapes, strict=True):
                rows, columns = shape.window(SIZE)
                width, height = columns.stop - columns.start, rows.stop - rows.start
                box = [columns.start, rows.start, width, height]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + number,
                        "category_id": kind,
                        "bbox": box,
                        "area": width * height,
                        "iscrowd": int(rng.uniform() < 0.1),
                        "segmentation": [],
                    }
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in categories.items()],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
