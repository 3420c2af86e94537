"""Where labelled pictures come from: each function finds those of one layout; nothing is decoded.

Data sets that are stored as arrays are in data/classification/arrays.py.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from torchvision.datasets.folder import make_dataset

from data import synthetic
from data.hub_columns import Media, classes_of, labelled, require_columns
from data.png import stored_png
from data.sources import (
    PICTURES,
    TRAIN,
    VAL,
    data_root,
    evenly_spaced,
    open_hub,
    require_classes,
    stand_in_note,
)
from errors import UserError

IMAGE = datasets.Image(decode=False)
MOST_BYTES = 2**30  # of pictures in one Arrow array
SYNTHETIC_SAMPLES = {"train": 600, "val": 180}


@dataclass(frozen=True)
class ClassificationData:
    """A classification data set.

    Args:
        train: rows with the columns image (path or bytes) and label (ClassLabel).
        val: the same for evaluation.
        classes: names of the labels 0..n-1.
        notes: sentences about choices made here that a user should see.
    """

    train: datasets.Dataset
    val: datasets.Dataset
    classes: list[str]
    notes: tuple[str, ...] = ()


def load_synthetic(
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    **_: object,
) -> ClassificationData:
    """A large shape on a textured ground, made here; of a limited split only what is kept."""
    size, classes = image_size or (48, 48), list(synthetic.SHAPES)
    limits = {"train": limit_train, "val": limit_val}
    splits = []
    for number, (split, count) in enumerate(SYNTHETIC_SAMPLES.items()):
        kept = evenly_spaced(count, limits[split])
        files, labels = zip(*_shapes(kept, [seed, number], size), strict=True)
        names = [f"synthetic/{split}/{i:04d}.png" for i in kept]
        splits.append(rows(names, labels, classes, files))
    return ClassificationData(*splits, classes)


def _shapes(
    numbers: np.ndarray, seed: Sequence[int], size: tuple[int, int]
) -> Iterator[tuple[bytes, int]]:
    """Pictures as files and labels, each a function of its number, the seed and the size."""
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


def load_folder(data_dir: str | None, **_: object) -> ClassificationData:
    """A folder per class, in a folder per split or in none."""
    expected = "train and val, each with a folder of pictures per class"
    root = data_root("folder", data_dir, expected)
    train_root = next((root / name for name in TRAIN if (root / name).is_dir()), None)
    val_root = next((root / name for name in VAL if (root / name).is_dir()), None)
    if train_root is None and val_root is not None:
        raise UserError(f"{root} has {val_root.name} but no train: it must hold {expected}.")
    train_root = train_root or root
    classes = _class_folders(train_root, expected)
    train = _pictures(train_root, classes)
    if val_root is None:
        held_out = set(_every_tenth(train))
        if not held_out:
            raise UserError(
                f"{root} has no val, and no class has two pictures of which one could be held out: "
                "add pictures."
            )
        val = [train[i] for i in sorted(held_out)]
        train = [sample for i, sample in enumerate(train) if i not in held_out]
        notes = (f"{root} has no val: every tenth picture of each class is held out.",)
    else:
        unknown = [name for name in _class_folders(val_root, expected) if name not in classes]
        if unknown:
            raise UserError(
                f"{val_root} has the class {unknown[0]}, which {train_root} has not: remove it or "
                "add pictures for training."
            )
        val = _pictures(val_root, classes, may_lack=True)
        notes = stand_in_note(root, val_root.name)
    splits = (rows(*zip(*samples, strict=True), classes) for samples in (train, val))
    return ClassificationData(*splits, classes, notes)


def _class_folders(root: Path, expected: str) -> list[str]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise UserError(
            f"{root} holds {len(names)} folders of classes and classifying takes 2: the data "
            f"folder must hold {expected}."
        )
    return names


def _pictures(root: Path, classes: Sequence[str], may_lack: bool = False) -> list[tuple[str, int]]:
    """(path, label) of every picture, by class and name."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(root), numbers, extensions=tuple(PICTURES), allow_empty=True)
    samples = [(path, label) for path, label in found if not Path(path).name.startswith(".")]
    missing = set(range(len(classes))) - {label for _, label in samples}
    if missing and not (may_lack and samples):
        raise UserError(
            f"There are no pictures in {root / classes[min(missing)]}: put the class's pictures "
            "there, or remove the folder."
        )
    return samples


def _every_tenth(samples: Sequence[tuple[str, int]]) -> Iterator[int]:
    """Numbers of every tenth sample of each label, from the second on: one stays for training."""
    seen: dict[int, int] = {}
    for number, (_, label) in enumerate(samples):
        seen[label] = seen.get(label, -1) + 1
        if seen[label] % 10 == 1:
            yield number


def load_hub(name: str, image_column: str, label_column: str) -> ClassificationData:
    """A data set of the Hugging Face hub, ``id`` or ``id:configuration``, or a local path."""
    *splits, notes = open_hub(name)
    for split in splits:
        wanted = {"--image_column": image_column, "--label_column": label_column}
        require_columns(split, name, wanted)
    classes = classes_of(splits[0], name, label_column)
    require_classes(classes, name)
    media = Media("image", IMAGE, "pictures")
    return ClassificationData(
        *(labelled(split, name, media, image_column, label_column, classes) for split in splits),
        classes,
        notes,
    )


def rows(
    paths: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    files: Sequence[bytes] | None = None,
) -> datasets.Dataset:
    """Rows of the schema: pictures at ``paths``, or in ``files`` with ``paths`` as their names."""
    label = datasets.ClassLabel(names=list(classes))
    files = files or [None] * len(paths)
    # As Arrow arrays right away: for a million rows a dictionary each takes a minute. In pieces,
    # since one array holds no more than 2 GB.
    largest = max((len(file) for file in files if file is not None), default=0)
    size = max(1, MOST_BYTES // max(1, largest))
    pieces = [
        pa.StructArray.from_arrays(
            [
                pa.array(files[i : i + size], pa.binary()),
                pa.array(paths[i : i + size], pa.string()),
            ],
            names=["bytes", "path"],
        )
        for i in range(0, max(1, len(paths)), size)
    ]
    table = pa.table({"image": pa.chunked_array(pieces), "label": pa.array(labels, pa.int64())})
    info = datasets.DatasetInfo(features=datasets.Features({"image": IMAGE, "label": label}))
    # Given, since computing one reads all data, which nothing here needs.
    return datasets.Dataset(table, info=info, fingerprint=uuid.uuid4().hex)
