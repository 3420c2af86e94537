"""Sources of labelled images: each function finds the images and classes of one layout.

The layouts are described in docs/data.md. Nothing is decoded here. Folders and tables are read in
tasks/classification/folders.py, data sets that are stored as arrays in arrays.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from data import synthetic
from data.class_lists import require_classes
from data.faults import Faults
from data.hub import Media, classes_of, hub_name, labelled, labelled_only, open_hub, require_columns
from data.notes import class_notes, label_counts
from data.png import stored_png
from data.sources import evenly_spaced, load_from
from tasks.classification.arrays import load_cifar, load_fake, load_fashion_mnist
from tasks.classification.folders import load_csv, load_folder
from tasks.classification.rows import IMAGE, ClassificationData, SourceOptions, rows

SYNTHETIC_SAMPLES = {"train": 600, "val": 180}


def load_data(options: SourceOptions, faults: Faults | None = None) -> ClassificationData:
    """Find the data set that the options name; nothing is decoded yet.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    data = load_from(SOURCES, options, faults)
    train, val = (label_counts(rows, data.classes) for rows in (data.train, data.val))
    more = class_notes(data.classes, train, val, "image")
    return replace(data, notes=data.notes + more)


def load_synthetic(options: SourceOptions, faults: Faults) -> ClassificationData:
    """Large shapes on textured grounds; of a limited split, only those kept are drawn."""
    size, classes = tuple(options.image_size), list(synthetic.SHAPES)
    limits = {"train": options.limit_train, "val": options.limit_val}
    splits = []
    for number, (split, count) in enumerate(SYNTHETIC_SAMPLES.items()):
        kept = evenly_spaced(count, limits[split])
        files, labels = zip(*_shapes(kept, [options.seed, number], size), strict=True)
        names = [f"synthetic/{split}/{i:04d}.png" for i in kept]
        splits.append(rows(names, labels, classes, files))
    return ClassificationData(*splits, classes)


def _shapes(
    numbers: np.ndarray, seed: Sequence[int], size: tuple[int, int]
) -> Iterator[tuple[bytes, int]]:
    """Image files and labels, each a function of its number, the seed and the size."""
    for number in numbers:
        rng = np.random.default_rng([*seed, int(number)])
        label = int(rng.integers(len(synthetic.SHAPES)))
        middle, spread = np.array(size) / 2, np.array(size) / 8
        shape = synthetic.Shape(
            kind=synthetic.SHAPES[label],
            center=tuple(rng.uniform(middle - spread, middle + spread)),
            radius=min(size) * rng.uniform(0.22, 0.45),
            angle=rng.uniform(0, 2 * np.pi),
            stretch=1.3 ** rng.uniform(-1, 1),
        )
        yield stored_png(synthetic.draw(rng, [shape], size).image), label


def load_hub(options: SourceOptions, faults: Faults) -> ClassificationData:
    """A data set of the Hugging Face hub, or a local copy of one."""
    *splits, notes = open_hub(options, options.image_column, label_column=options.label_column)
    name, label_column = hub_name(options.dataset), options.label_column
    image_column = options.image_column
    for split in splits:
        wanted = {"--image_column": image_column, "--label_column": label_column}
        require_columns(split, name, wanted)
    if options.skip_unlabelled:
        splits, more = labelled_only(splits, name, label_column)
        notes += more
    classes = classes_of(splits[0], name, label_column)
    require_classes(classes, name)
    media = Media("image", IMAGE, "images", "--image_column")
    return ClassificationData(
        *(labelled(split, name, media, image_column, label_column, classes) for split in splits),
        classes,
        notes,
    )


SOURCES: dict[str, Callable[[SourceOptions, Faults], ClassificationData]] = {
    "synthetic": load_synthetic,
    "folder": load_folder,
    "csv": load_csv,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "fake": load_fake,
    "hub": load_hub,
}
