"""Small images stored as arrays: Fashion-MNIST, CIFAR, and random ones to measure speed."""

import gzip
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import torchvision
from filelock import FileLock

from data.faults import Faults
from data.png import stored_png
from data.sources import evenly_spaced
from errors import UserError
from tasks.classification.rows import ClassificationData, SourceOptions, rows

FAKE_SAMPLES = {"train": 512, "val": 128}
FAKE_CLASSES = 10

Arrays = tuple[Sequence[np.ndarray], Sequence[int]]  # images and labels

IDX_FILES = [
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
]


def load_fake(options: SourceOptions, faults: Faults) -> ClassificationData:
    """Noise with random labels, like torchvision's FakeData: to measure speed, not to learn."""
    height, width = options.image_size
    classes = [f"class {number}" for number in range(FAKE_CLASSES)]
    limits = {"train": options.limit_train, "val": options.limit_val}
    splits = []
    for number, (split, count) in enumerate(FAKE_SAMPLES.items()):
        names, labels, files = [], [], []
        for sample in evenly_spaced(count, limits[split]).tolist():
            rng = np.random.default_rng([options.seed, number, sample])
            files.append(stored_png(rng.integers(0, 256, (height, width, 3), np.uint8)))
            labels.append(int(rng.integers(FAKE_CLASSES)))
            names.append(f"fake/{split}/{sample:04d}.png")
        splits.append(rows(names, labels, classes, files))
    return ClassificationData(*splits, classes)


def load_fashion_mnist(options: SourceOptions, faults: Faults) -> ClassificationData:
    """Fashion-MNIST from its four idx files, plain or gzipped."""
    root = _root(options, f"{IDX_FILES[0][0]}.gz and its three companions")

    def find() -> list[Arrays] | None:
        for folder in (root, root / "FashionMNIST" / "raw", root / "raw"):
            found = [[_plain_or_gz(folder / name) for name in pair] for pair in IDX_FILES]
            if all(path for pair in found for path in pair):
                return [_read_split(*pair, len(source.classes)) for pair in found]
        return None

    source = torchvision.datasets.FashionMNIST
    splits, notes = _find_or_download(
        find, lambda: source(str(root), download=True), root, "Fashion-MNIST"
    )
    return _data(options, splits, source.classes, notes)


def load_cifar(options: SourceOptions, faults: Faults) -> ClassificationData:
    """CIFAR-10 or CIFAR-100 from the batches of the Python version.

    The batches are pickles, which could run anything: torchvision reads them only if their
    checksums are those of the published files.
    """
    dataset = options.dataset
    source = {
        "cifar10": torchvision.datasets.CIFAR10,
        "cifar100": torchvision.datasets.CIFAR100,
    }[dataset]
    root = _root(options, source.base_folder)
    root = root.parent if root.name == source.base_folder else root

    def find() -> list[torchvision.datasets.CIFAR10] | None:
        if not (root / source.base_folder).is_dir():
            return None
        try:
            return [source(str(root), train=train) for train in (True, False)]
        except (RuntimeError, OSError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{root / source.base_folder} does not hold the published files of {dataset}: "
                "remove it to have it downloaded, or restore its files."
            ) from error

    found, notes = _find_or_download(find, lambda: source(str(root), download=True), root, dataset)
    splits = [(split.data, split.targets) for split in found]
    return _data(options, splits, found[0].classes, notes)


def _root(options: SourceOptions, expected: str) -> Path:
    if options.data_dir is None:
        raise UserError(
            f"--dataset {options.dataset} needs --data_dir: give the folder that holds {expected}, "
            "or an empty one to download it to."
        )
    return Path(options.data_dir).expanduser()


def _find_or_download(
    find: Callable[[], list | None], download: Callable[[], object], root: Path, what: str
) -> tuple[list, tuple[str, ...]]:
    """What ``find`` finds in ``root``, if necessary after a download, and a note about that."""
    damage = None
    try:
        if (found := find()) is not None:
            return found, ()
    except UserError as error:  # perhaps another process's download, still unfinished
        damage = error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # one process downloads, the others wait
            if (found := find()) is not None:
                return found, ()
            download()
            found = find()
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise damage or UserError(
            f"{what} is not in {root} and can't be downloaded ({reason}): bring its files from a "
            "machine with a network, or check --data_dir."
        ) from error
    return found, (f"{what} was downloaded to {root}.",)


def _plain_or_gz(path: Path) -> Path | None:
    gzipped = path.with_name(f"{path.name}.gz")
    return next((file for file in (path, gzipped) if file.is_file()), None)


def _read_split(images_file: Path, labels_file: Path, num_classes: int) -> Arrays:
    images, labels = _read_idx(images_file, 3), _read_idx(labels_file, 1)
    if len(images) != len(labels) or labels.max(initial=0) >= num_classes:
        raise UserError(
            f"{images_file} holds {len(images)} images and {labels_file.name} {len(labels)} labels "
            f"up to {labels.max(initial=0)}, which are not those of Fashion-MNIST: download both "
            "again."
        )
    return images, labels


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file: two zeros, type 8, number of dimensions, sizes, data."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be unpacked ({error}): download it again.") from error
    start = 4 + 4 * dimensions
    if data[:4] == bytes([0, 0, 8, dimensions]) and len(data) >= start:
        sizes = np.frombuffer(data[4:start], ">u4").astype(np.int64)
        if len(data) == start + sizes.prod():
            return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)
    raise UserError(
        f"{path} is not a complete idx file of {dimensions} dimensions: download it again."
    )


def _data(
    options: SourceOptions,
    splits: Sequence[Arrays],
    classes: Sequence[str],
    notes: tuple[str, ...] = (),
) -> ClassificationData:
    """Rows of the arrays; of a limited split, only the samples that are kept are encoded."""
    made: list[datasets.Dataset] = []
    limits = (options.limit_train, options.limit_val)
    for split, (images, labels), limit in zip(("train", "val"), splits, limits, strict=True):
        kept = evenly_spaced(len(labels), limit).tolist()
        files = [stored_png(images[i]) for i in kept]
        names = [f"{options.dataset}/{split}/{i:05d}.png" for i in kept]
        made.append(rows(names, [int(labels[i]) for i in kept], classes, files))
    return ClassificationData(*made, list(classes), notes)
