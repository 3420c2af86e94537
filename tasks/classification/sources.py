"""Sources of labelled images: each function finds the images and classes of one layout.

The layouts are described in docs/data.md. Nothing is decoded here. Data sets that are stored as
arrays are in tasks/classification/arrays.py.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import make_dataset

from data import synthetic
from data.class_lists import require_classes
from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, TRAIN, VAL, data_root, stand_in_note
from data.hub import Media, classes_of, hub_name, labelled, open_hub, require_columns
from data.png import stored_png
from data.sources import evenly_spaced, load_from
from errors import UserError
from tasks.classification.arrays import load_cifar, load_fake, load_fashion_mnist
from tasks.classification.rows import IMAGE, ClassificationData, SourceOptions, rows

SYNTHETIC_SAMPLES = {"train": 600, "val": 180}


def load_data(options: SourceOptions, faults: Faults | None = None) -> ClassificationData:
    """Find the data set that the options name; nothing is decoded yet.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    return load_from(SOURCES, options, faults)


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


def load_folder(options: SourceOptions, faults: Faults) -> ClassificationData:
    """<split>/<class>/<image file>, or <class>/<image file> without splits."""
    expected = "train and val, each with a folder of images per class"
    root = data_root(options, expected)
    train_root = next((root / name for name in TRAIN if (root / name).is_dir()), None)
    val_root = next((root / name for name in VAL if (root / name).is_dir()), None)
    if train_root is None and val_root is not None:
        raise UserError(f"{root} has {val_root.name} but no train: it must hold {expected}.")
    train_root = train_root or root
    classes = _class_folders(train_root, expected)
    train = _images(train_root, classes)
    if val_root is None:
        held_out = set(_every_tenth(train))
        if not held_out:
            raise UserError(
                f"{root} has no val, and no class has two images, one of which could be held out: "
                "add images."
            )
        val = [train[i] for i in sorted(held_out)]
        train = [sample for i, sample in enumerate(train) if i not in held_out]
        notes = (f"{root} has no val: every tenth image of each class is held out.",)
    else:
        unknown = [name for name in _class_folders(val_root, expected) if name not in classes]
        if unknown:
            raise UserError(
                f"{val_root} has the class {unknown[0]}, which {train_root} lacks: remove it, or "
                "add images of it for training."
            )
        val = _images(val_root, classes, may_lack=True)
        notes = stand_in_note(root, val_root.name)
    splits = (rows(*zip(*samples, strict=True), classes) for samples in (train, val))
    return ClassificationData(*splits, classes, notes)


def _class_folders(root: Path, expected: str) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise UserError(
            f"{root} holds {len(names)} folders of classes, but classifying takes 2: the data "
            f"folder must hold {expected}."
        )
    return names


def _images(root: Path, classes: Sequence[str], may_lack: bool = False) -> list[tuple[str, int]]:
    """(path, label) of every image, sorted by class and name."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(root), numbers, extensions=tuple(IMAGE_SUFFIXES), allow_empty=True)
    samples = [(path, label) for path, label in found if not Path(path).name.startswith(".")]
    missing = set(range(len(classes))) - {label for _, label in samples}
    if missing and not (may_lack and samples):
        raise UserError(
            f"There are no images in {root / classes[min(missing)]}: put images of the class "
            "there, or remove the folder."
        )
    return samples


def _every_tenth(samples: Sequence[tuple[str, int]]) -> Iterator[int]:
    """Numbers of every tenth sample of each label, from the second on, so that one can train."""
    seen: dict[int, int] = {}
    for number, (_, label) in enumerate(samples):
        seen[label] = seen.get(label, -1) + 1
        if seen[label] % 10 == 1:
            yield number


def load_hub(options: SourceOptions, faults: Faults) -> ClassificationData:
    """A data set of the Hugging Face hub, or a local copy of one."""
    *splits, notes = open_hub(options, options.image_column)
    name, label_column = hub_name(options.dataset), options.label_column
    image_column = options.image_column
    for split in splits:
        wanted = {"--image_column": image_column, "--label_column": label_column}
        require_columns(split, name, wanted)
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
    "fashion_mnist": load_fashion_mnist,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "fake": load_fake,
    "hub": load_hub,
}
