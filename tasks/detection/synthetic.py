"""The built-in detection data: images of shapes, which need no download."""

from collections.abc import Iterator
from dataclasses import replace

import datasets
import numpy as np

from data.faults import Faults
from data.png import stored_png
from data.sources import evenly_spaced
from data.synthetic import COLORS, SHAPES, Scene, Shape, draw, random_shape
from tasks.detection import instance_masks
from tasks.detection.headers import Header
from tasks.detection.make_rows import to_rows
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import Annotated, DetectionData

TRAIN_IMAGES, VAL_IMAGES = 512, 128
EMPTY = 0.08  # share of the images without shapes
HIDDEN = 0.75  # a shape of which others hide more than this share is no object


def load_synthetic(options: DetectionOptions, faults: Faults) -> DetectionData:
    """Shapes on textured grounds, made here; of a limited split only what is kept."""
    splits = [("train", TRAIN_IMAGES, options.limit_train), ("val", VAL_IMAGES, options.limit_val)]
    train, val = (
        _rows(options, split, number, evenly_spaced(count, limit))
        for number, (split, count, limit) in enumerate(splits)
    )
    return DetectionData(train, val, list(SHAPES), list(COLORS[1:]))


def _rows(
    options: DetectionOptions, split: str, split_number: int, kept: np.ndarray
) -> datasets.Dataset:
    size = tuple(options.image_size)
    images = (
        _annotated(split, number, np.random.default_rng([options.seed, split_number, number]), size)
        for number in kept.tolist()
    )
    return to_rows(images, SHAPES, options, Faults())[0]


def _annotated(
    split: str, number: int, rng: np.random.Generator, size: tuple[int, int]
) -> Annotated:
    """An image of ``size`` (height, width), a function of the random state, and its objects."""
    scene = draw(rng, random_shapes(rng, size), size)
    name = f"synthetic/{split}/{number:04d}.png"
    cell = {"path": name, "bytes": stored_png(scene.image)}
    image = Annotated(cell, size, number, header=Header(size, False, size))
    for kind, mask in visible_objects(scene):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        box = (left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)
        image.add(box, kind, area=float(mask.sum()), outline=instance_masks.encode(mask))
    return image


def random_shapes(rng: np.random.Generator, size: tuple[int, int]) -> list[Shape]:
    """Between 1 and 8 shapes whose sizes differ by a factor of four, or now and then none."""
    if rng.uniform() < EMPTY:
        return []
    return [
        replace(random_shape(rng, size), radius=min(size) * 0.07 * 4.0 ** rng.uniform())
        for _ in range(rng.integers(1, 9))
    ]


def visible_objects(scene: Scene) -> Iterator[tuple[int, np.ndarray]]:
    """The shapes of which others hide no more than HIDDEN, from back to front.

    Yields:
        The position in SHAPES, and the mask of what is seen, bool (H, W).
    """
    for number, shape in enumerate(scene.shapes):
        seen = scene.top == number
        covered = shape.covers(shape.window(scene.top.shape)).sum()
        if seen.any() and seen.sum() >= (1 - HIDDEN) * covered:
            yield SHAPES.index(shape.kind), seen
