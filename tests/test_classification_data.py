"""Classification data: every source's layout, augmentation, mixing, determinism and bad input."""

import gzip
import hashlib
import io
import pickle
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from data import synthetic
from data.decode import read_image
from data.png import stored_png
from data.stream import RankBatches, SampleKey, SampleStream
from errors import UserError
from tasks.classification import rows as schema
from tasks.classification.check import survey
from tasks.classification.dataset import EvalDataset, Reader, TrainDataset, collate
from tasks.classification.mixing import Mixing, cutmix, mixup
from tasks.classification.options import ClassificationOptions
from tasks.classification.rows import ClassificationData
from tasks.classification.sources import load_data
from tasks.classification.transforms import FILL, eval_transform, train_transform

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def pixels(size=(12, 16), channels=3, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def save_image(path: Path, size=(12, 16), seed=0, grey=False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(size, seed=seed))
    (image.convert("L") if grey else image).save(path)


def make_folder(root: Path, splits=("train", "val"), counts=(("cat", 3), ("dog", 2))) -> Path:
    for split in splits:
        for name, count in counts:
            for number in range(count):
                save_image(root / split / name / f"{number:02d}.png", seed=number)
    return root


def labels(rows) -> list[str]:
    return [rows.features["label"].int2str(label) for label in rows["label"]]


def load(dataset: str = "synthetic", data_dir: Path | None = None, **options) -> ClassificationData:
    data_dir = data_dir and str(data_dir)
    return load_data(ClassificationOptions(dataset=dataset, data_dir=data_dir, **options))


def reader_of(data: ClassificationData, split: str = "train") -> Reader:
    return Reader(getattr(data, split), len(data.classes))


def train_data(reader: Reader, transform=None, mixing=None) -> TrainDataset:
    return TrainDataset(reader, transform or train_transform((16, 16)), seed=5, mixing=mixing)


def is_one_sentence(message: str) -> bool:
    body = message.removesuffix(".")
    return message.endswith(".") and "\n" not in message and ". " not in body and len(message) < 600


# Files


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (28, 28), (32, 33, 3), (300, 260, 3)])
def test_stored_png_is_read_back_by_everything(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = stored_png(picture)
    with Image.open(io.BytesIO(file)) as opened:
        opened.verify()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), picture)
    image = read_image({"path": None, "bytes": file}, "x").permute(1, 2, 0).numpy()
    assert np.array_equal(image, picture if picture.ndim == 3 else picture[..., None].repeat(3, 2))


# Folders


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "test")])
def test_folder_of_splits(tmp_path, train, val):
    make_folder(tmp_path, (train, val))
    data = load("folder", tmp_path)
    assert data.classes == ["cat", "dog"] and len(data.notes) == (val == "test")
    assert all("test is used to validate" in note for note in data.notes)
    assert labels(data.train) == labels(data.val) == ["cat"] * 3 + ["dog"] * 2
    paths = [row["image"]["path"] for row in data.train]
    assert [Path(path).parent.name for path in paths] == labels(data.train)
    assert data.train.features["label"] == datasets.ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize("splits", [("",), ("train",)])
def test_folder_without_validation_holds_out_a_part_of_each_class(tmp_path, splits):
    make_folder(tmp_path, splits, counts=(("a", 60), ("b", 4), ("c", 2), ("d", 1)))
    data = load("folder", tmp_path)
    assert len(data.notes) == 2 and "held out" in data.notes[0]
    assert data.notes[1].startswith("val: 1 of 4 classes have no image") and "d." in data.notes[1]
    counts = np.bincount(data.val["label"][:], minlength=4)
    assert 1 <= counts[0] <= 15 and counts[1] >= 1 and counts[2] == 1 and counts[3] == 0
    assert set(data.train["label"][:]) == {0, 1, 2, 3}
    everything = {row["image"]["path"] for rows in (data.train, data.val) for row in rows}
    assert len(everything) == len(data.train) + len(data.val) == 67


def test_folder_ignores_what_is_hidden_or_no_image_and_looks_into_subfolders(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/._00.png").write_bytes(b"resource fork")
    (tmp_path / "train/cat/notes.txt").write_text("x")
    save_image(tmp_path / "train/cat/more/9.PNG")
    data = load("folder", tmp_path)
    assert labels(data.train) == ["cat"] * 4 + ["dog"] * 2


def test_folder_of_which_validation_lacks_a_class(tmp_path):
    make_folder(tmp_path, ("train",), (("a", 2), ("b", 2), ("c", 2)))
    make_folder(tmp_path, ("val",), (("a", 2), ("c", 1)))
    data = load("folder", tmp_path)
    assert labels(data.val) == ["a", "a", "c"]  # c stays the third class


def without_images(root):
    for path in (root / "train/dog").iterdir():
        path.unlink()
    return root / "train/dog"


def with_unknown_class(root):
    save_image(root / "val/horse/1.png")
    return root / "val"


def with_one_class(root):
    without_images(root)
    (root / "train/dog").rmdir()
    return root / "train"


def without_training(root):
    (root / "train").rename(root / "something")
    return root


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_images, "no images in"),
        (with_unknown_class, "the class horse"),
        (with_one_class, "1 folders of classes"),
        (without_training, "has val but no train"),
    ],
)
def test_folders_that_can_not_be_learnt_from(tmp_path, spoil, reason):
    path = spoil(make_folder(tmp_path))
    with pytest.raises(UserError, match=reason) as caught:
        load("folder", tmp_path)
    assert str(path) in str(caught.value) and is_one_sentence(str(caught.value))


@pytest.mark.parametrize("dataset", ["folder", "fashion_mnist", "cifar10", "cifar100"])
def test_a_data_set_needs_its_folder(dataset):
    with pytest.raises(UserError, match="--data_dir") as caught:
        load(dataset)
    assert is_one_sentence(str(caught.value))


def test_unknown_data_set_lists_the_known():
    with pytest.raises(UserError, match=r"mnist.*fashion_mnist.*cifar10.*hub"):
        load("mnist")


def test_limits_are_evenly_spaced(tmp_path):
    make_folder(tmp_path, counts=(("a", 6), ("b", 6)))
    data = load("folder", tmp_path, limit_train=4, limit_val=50)
    assert labels(data.train) == ["a", "a", "b", "b"] and len(data.val) == 12


# Built-in data


@pytest.mark.parametrize("dataset", ["synthetic", "fake"])
def test_built_in_data_are_a_function_of_seed_and_size(dataset):
    options = {"limit_train": 12, "limit_val": 4, "image_size": (40, 56)}
    data = load(dataset, seed=3, **options)
    again = load(dataset, seed=3, **options)
    other = load(dataset, seed=4, **options)
    assert again.train[:] == data.train[:] != other.train[:]
    fewer = load(dataset, seed=3, **(options | {"limit_train": 6}))
    assert fewer.train[:] == data.train.select(range(0, 12, 2))[:]
    files = [{row["image"]["bytes"] for row in rows} for rows in (data.train, data.val)]
    assert len(files[0]) == 12 and not files[0] & files[1]
    image, label = reader_of(data).read(0)
    assert image.shape == (3, 40, 56) and 0 <= label < len(data.classes)


def test_synthetic_classes_are_balanced_and_show_their_shape():
    data = load()
    assert data.classes == list(synthetic.SHAPES)
    assert (len(data.train), len(data.val)) == (600, 180)
    counts = np.bincount(data.train["label"], minlength=6)
    assert counts.min() > 75 and counts.max() < 130
    reader = reader_of(data)
    drawn = []
    for index in range(0, 600, 6):
        image = reader.read(index)[0].float()
        border = torch.cat([image[:, :3].flatten(1), image[:, -3:].flatten(1)], dim=1)
        middle = image[:, 16:32, 16:32].flatten(1)
        drawn.append((middle.mean(1) - border.mean(1)).abs().max() > 10)
    assert np.mean(drawn) > 0.75  # something stands out from the ground in the middle


# Data sets of arrays


def idx_file(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + bytes(values)


def make_fashion_mnist(folder: Path, gzipped: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(6, dtype=np.uint8)[::-1].copy(),
    }
    for name, values in arrays.items():
        data = idx_file(values)
        path = folder / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(data) if gzipped else data)
    return arrays


@pytest.mark.parametrize(
    ("inner", "gzipped"), [(".", True), ("FashionMNIST/raw", False), ("raw", True)]
)
def test_fashion_mnist(tmp_path, inner, gzipped):
    arrays = make_fashion_mnist(tmp_path / "data" / inner, gzipped)
    data = load("fashion_mnist", tmp_path / "data", limit_train=5)
    assert data.train["label"] == [0, 4, 8, 2, 6] and len(data.val) == 6
    assert data.classes[0] == "T-shirt/top" and len(data.classes) == 10
    image, label = reader_of(data).read(1)
    assert label == 4 and image.shape == (3, 28, 28)
    expected = torch.from_numpy(arrays["train-images-idx3-ubyte"][4])
    assert all(torch.equal(channel, expected) for channel in image)


@pytest.mark.parametrize("damage", ["cut", "cut gzip", "header", "other", "labels"])
def test_damaged_fashion_mnist_is_named(tmp_path, damage):
    make_fashion_mnist(tmp_path / "d", gzipped=damage == "cut gzip")
    path = tmp_path / "d" / "t10k-images-idx3-ubyte"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "cut gzip":
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "header":
        path.write_bytes(path.read_bytes()[:7])
    elif damage == "other":
        path.write_bytes(b"<html>not found</html>")
    else:
        path.with_name("t10k-labels-idx1-ubyte").write_bytes(idx_file(np.zeros(5, np.uint8)))
    with pytest.raises(UserError) as caught:
        load("fashion_mnist", tmp_path / "d")
    assert str(path) in str(caught.value) and is_one_sentence(str(caught.value))


def make_cifar(root: Path, monkeypatch, fine: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """Batches as published, of 4 images each, with their checksums in place of the real ones."""
    source = torchvision.datasets.CIFAR100 if fine else torchvision.datasets.CIFAR10
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    key = "fine_labels" if fine else "labels"
    names = [f"c{number}" for number in range(100 if fine else 10)]
    rng = np.random.default_rng(0)
    stored = {}
    for attribute in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(source, attribute):
            stored[name] = rng.integers(0, 256, (4, 3072), np.uint8)
            data = pickle.dumps({"data": stored[name], key: [3, 1, 2, len(names) - 1]})
            (folder / name).write_bytes(data)
            files.append([name, hashlib.md5(data).hexdigest()])
        monkeypatch.setattr(source, attribute, files)
    meta = pickle.dumps({source.meta["key"]: names})
    (folder / source.meta["filename"]).write_bytes(meta)
    monkeypatch.setattr(source, "meta", source.meta | {"md5": hashlib.md5(meta).hexdigest()})
    return folder, stored


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar(tmp_path, monkeypatch, dataset):
    folder, stored = make_cifar(tmp_path, monkeypatch, fine=dataset == "cifar100")
    for data_dir in (tmp_path, folder):
        data = load(dataset, data_dir, limit_val=2)
        assert len(data.train) == (4 if dataset == "cifar100" else 20) and len(data.val) == 2
        assert len(data.classes) == (100 if dataset == "cifar100" else 10)
        assert data.train["label"][:3] == [3, 1, 2]
    image, _ = reader_of(data).read(1)
    first = stored["train" if dataset == "cifar100" else "data_batch_1"]
    assert torch.equal(image, torch.from_numpy(first[1].reshape(3, 32, 32)))


class Trap:
    """A pickle that, once loaded, leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_was_not_published_is_never_loaded(tmp_path, monkeypatch):
    folder, _ = make_cifar(tmp_path, monkeypatch, fine=False)
    (folder / "data_batch_3").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))

    def download(self):
        raise AssertionError("over what the user is asked to look at first")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(UserError, match="published files of cifar10") as caught:
        load("cifar10", tmp_path)
    assert str(folder) in str(caught.value) and is_one_sentence(str(caught.value))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10"])
def test_data_are_downloaded_once_or_the_failure_told(tmp_path, monkeypatch, dataset):
    name = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}[dataset]
    source = getattr(torchvision.datasets, name)

    def fail(self):
        raise RuntimeError("Error downloading x")

    monkeypatch.setattr(source, "download", fail)
    with pytest.raises(UserError, match="can't be downloaded") as caught:
        load(dataset, tmp_path / "new")
    assert str(tmp_path / "new") in str(caught.value) and is_one_sentence(str(caught.value))

    calls = []

    def succeed(self):
        calls.append(self.root)
        if dataset == "cifar10":
            make_cifar(Path(self.root), monkeypatch, fine=False)
        else:
            make_fashion_mnist(Path(self.root) / name / "raw", gzipped=False)

    monkeypatch.setattr(source, "download", succeed)
    first = load(dataset, tmp_path / "new")
    second = load(dataset, tmp_path / "new")
    assert len(calls) == 1 and first.train[:] == second.train[:]
    assert "downloaded to" in first.notes[0] and first.notes[1:] == second.notes


def test_processes_that_start_together_download_once(tmp_path, monkeypatch):
    calls, half_written = [], threading.Event()

    def download(self):
        calls.append(self.root)
        folder = Path(self.root) / "FashionMNIST" / "raw"
        make_fashion_mnist(folder, gzipped=False)
        whole = (folder / "t10k-labels-idx1-ubyte").read_bytes()
        (folder / "t10k-labels-idx1-ubyte").write_bytes(whole[:9])
        half_written.set()
        time.sleep(0.2)  # in which the other one meets half a file
        (folder / "t10k-labels-idx1-ubyte").write_bytes(whole)

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", download)
    start = partial(load, "fashion_mnist", tmp_path / "new")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(start)
        assert half_written.wait(10)
        second = pool.submit(start)
        assert first.result().train[:] == second.result().train[:]
    assert len(calls) == 1


# The hub


def hub_rows(label_feature, values) -> datasets.Dataset:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG")
    columns = {"img": [{"bytes": buffer.getvalue(), "path": None}] * len(values), "kind": values}
    features = datasets.Features({"img": datasets.Image(), "kind": label_feature})
    return datasets.Dataset.from_dict(columns, features=features)


COLUMNS = {"image_column": "img", "label_column": "kind"}


@pytest.mark.parametrize(
    ("feature", "values", "classes"),
    [
        (datasets.ClassLabel(names=["x", "y", "z"]), [0, 1, 1], ["x", "y", "z"]),
        (datasets.Value("int64"), [2, 1, 0], ["class 0", "class 1", "class 2"]),
        (datasets.Value("string"), ["dog", "cat", "dog"], ["cat", "dog"]),
    ],
)
def test_hub_labels_of_every_kind(tmp_path, feature, values, classes):
    splits = {"train": hub_rows(feature, values), "test": hub_rows(feature, values[1:])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    data = load(f"hub:{tmp_path / 'saved'}", **COLUMNS)
    assert data.classes == classes
    expected = [classes.index(v) if isinstance(v, str) else v for v in values]
    assert data.train["label"] == expected and data.val["label"] == expected[1:]
    assert reader_of(data, "val").read(0)[0].shape == (3, 12, 16)


def test_images_that_fill_several_arrow_arrays(monkeypatch):
    """One array holds 2 GB, which 512 images of 1200x1200 exceed."""
    whole = load("fake", limit_train=5, limit_val=2, image_size=(8, 8))
    size = len(whole.train[0]["image"]["bytes"])
    monkeypatch.setattr(schema, "MOST_BYTES", 2 * size)
    pieces = load("fake", limit_train=5, limit_val=2, image_size=(8, 8))
    assert pieces.train.data.column("image").num_chunks == 3
    assert pieces.train[:] == whole.train[:] and pieces.val[:] == whole.val[:]


def test_hub_images_are_not_copied(tmp_path):
    hub_rows(datasets.Value("string"), ["y", "x"] * 6).save_to_disk(str(tmp_path / "saved"))
    before = sorted((tmp_path / "saved").rglob("*"))
    data = load(f"hub:{tmp_path / 'saved'}", **COLUMNS)
    assert sorted((tmp_path / "saved").rglob("*")) == before
    assert sorted(data.train["label"][:] + data.val["label"][:]) == [0] * 6 + [1] * 6
    assert len(data.val) >= 1 and "held out" in data.notes[0]


@pytest.mark.parametrize(
    "feature", [datasets.Value("string"), datasets.ClassLabel(names=["x", "y"])]
)
def test_hub_samples_without_a_label(tmp_path, feature):
    hub_rows(feature, ["x", "y", None] * 4).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"kind of .* has no label for sample \d") as caught:
        load(f"hub:{tmp_path / 'saved'}", **COLUMNS)
    assert is_one_sentence(str(caught.value))


def test_hub_labels_are_taken_by_name(tmp_path):
    """Also where the splits number their classes differently."""
    first, second = (datasets.ClassLabel(names=list(names)) for names in ("xy", "yx"))
    splits = {"train": hub_rows(first, ["x", "y"]), "test": hub_rows(second, ["y", "x"])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    data = load(f"hub:{tmp_path / 'saved'}", **COLUMNS)
    assert data.train["label"] == [0, 1] and data.val["label"] == [1, 0]


def test_hub_columns_and_labels_that_do_not_fit(tmp_path):
    kind = datasets.ClassLabel(names=["x", "y"])
    splits = {"train": hub_rows(kind, [0, 1]), "test": hub_rows(kind, [-1, -1])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    name = f"hub:{tmp_path / 'saved'}"
    for options, reason in (
        ({}, "no column image: .* img, kind with --image_column"),
        ({"image_column": "img"}, "no column label: .* with --label_column"),
        ({"image_column": "kind", "label_column": "img"}, "holds no labels"),
        (COLUMNS, "the label -1, which is none of its 2 classes"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            load(name, **options)
        assert is_one_sentence(str(caught.value))


# Samples


@pytest.fixture(scope="module")
def shapes():
    return load(limit_train=24, limit_val=8, seed=3, image_size=(40, 40))


AUGMENTATION = {
    "auto_augment": "rand_augment",
    "color_jitter": (0.3, 0.3, 0.3, 0.1),
    "erasing": 0.5,
}


def test_same_bits_for_any_number_of_workers(shapes):
    transform = train_transform((32, 24), **AUGMENTATION)
    mixing = Mixing(mixup=0.4, cutmix=1.0)
    dataset = TrainDataset(reader_of(shapes), transform, seed=11, mixing=mixing)
    keys = [SampleKey(p // 24, p % 24, p) for p in range(36)]
    runs = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        state = torch.get_rng_state()
        loader = DataLoader(
            dataset,
            sampler=keys,
            batch_size=6,
            num_workers=workers,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(workers),
        )
        batches = list(loader)
        assert torch.equal(torch.get_rng_state(), state)  # the main process is left alone
        runs.append({k: torch.cat([batch[k] for batch in batches]) for k in batches[0]})
    for run in runs[1:]:
        assert all(torch.equal(run[k], runs[0][k]) for k in runs[0])
    assert set(runs[0]) == {"image", "label", "label2", "mix"}
    assert runs[0]["image"].shape == (36, 3, 32, 24) and runs[0]["image"].dtype == torch.uint8
    assert runs[0]["label"].tolist() == [shapes.train[key.index]["label"] for key in keys]
    assert not torch.equal(runs[0]["image"][0], runs[0]["image"][24])  # another epoch
    other = TrainDataset(reader_of(shapes), transform, seed=12, mixing=mixing)
    assert not torch.equal(other[keys[0]]["image"], runs[0]["image"][0])


def test_mixed_batches_of_two_processes_are_those_of_one(shapes):
    dataset = train_data(reader_of(shapes), mixing=Mixing(1.0, 1.0))

    def batch(rank, processes):
        stream = SampleStream(len(dataset), 5)
        sampler = RankBatches(stream, 8 // processes, rank, processes, start=16, stop=24)
        (one,) = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        return one

    whole, parts = batch(0, 1), [batch(rank, 2) for rank in (0, 1)]
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([part[key] for part in parts]))


def test_eval_images_are_all_of_one_size(tmp_path):
    make_folder(tmp_path)
    save_image(tmp_path / "val/cat/00.png", size=(40, 20), grey=True)
    data = load("folder", tmp_path)
    dataset = EvalDataset(reader_of(data, "val"), eval_transform((16, 24)))
    (batch,) = DataLoader(dataset, batch_size=5, collate_fn=collate, num_workers=1)
    assert batch["image"].shape == (5, 3, 16, 24)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1] and batch["index"].tolist() == [*range(5)]
    grey = batch["image"][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    assert reader_of(data, "val").name(0).endswith("val/cat/00.png")


# Augmentation


def apply(transform, image, seed=0) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(tv_tensors.Image(image)).as_subclass(torch.Tensor)


def positions(height=60, width=80) -> torch.Tensor:
    """An image whose colours tell the place."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y * 3, x * 3, torch.full_like(y, 7)]).to(torch.uint8)


@pytest.mark.parametrize("size", [(64, 80), (91, 50), (64, 64)])
def test_eval_is_torchvisions_for_squares(size):
    image = torch.from_numpy(pixels(size)).permute(2, 0, 1)
    expected = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])(image)
    assert torch.equal(apply(eval_transform((56, 56), 0.875), image), expected)


@pytest.mark.parametrize("image_size", [(20, 40), (40, 20), (60, 80)])
def test_eval_takes_the_middle_at_its_proportions(image_size):
    image = apply(eval_transform(image_size, 0.8), positions())
    assert image.shape == (3, *image_size)
    y, x = image[0].float() / 3, image[1].float() / 3
    assert abs(y.mean() - 29.5) < 1 and abs(x.mean() - 39.5) < 1
    scales = [(t.max() - t.min()).item() / n for t, n in zip((y, x), image_size, strict=True)]
    assert scales[0] == pytest.approx(scales[1], rel=0.05)
    # The tighter side shows 0.8 of the image, the other one no more than that.
    shown = [(t.max() - t.min()).item() / n for t, n in zip((y, x), (60, 80), strict=True)]
    assert max(shown) == pytest.approx(0.8, abs=0.04)


def test_resized_crops_keep_to_their_range():
    shares = []
    for seed in range(40):
        image = apply(train_transform((48, 48), scale=(0.3, 0.6), hflip=0), positions(), seed)
        assert image.shape == (3, 48, 48)
        height = (image[0].max() - image[0].min()).item() / 3 / 60
        shares.append(height * (image[1].max() - image[1].min()).item() / 3 / 80)
    assert 0.22 < min(shares) < 0.4 and 0.45 < max(shares) < 0.65


def test_random_crop_shifts_small_images_within_their_padding():
    image = torch.from_numpy(pixels((32, 32))).permute(2, 0, 1).clamp(max=80)
    transform = train_transform((32, 32), hflip=0, random_crop=4)
    fill = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
    padded = fill.expand(3, 40, 40).clone()
    padded[:, 4:36, 4:36] = image
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
    places = set()
    for seed in range(60):
        crop = apply(transform, image, seed)
        same = (windows == crop[:, None, None]).all(0).all(-1).all(-1)
        assert same.sum() == 1
        places.add(tuple(same.nonzero()[0].tolist()))
    assert len(places) > 30
    assert apply(transform, positions()).shape == (3, 32, 32)  # also images of another size


def test_flip_erasing_and_policies_do_what_they_say():
    image, plain = positions(32, 32), {"scale": (1, 1), "ratio": (1, 1)}
    assert torch.equal(apply(train_transform((32, 32), hflip=1, **plain), image), image.flip(-1))
    assert torch.equal(apply(train_transform((32, 32), hflip=0, **plain), image), image)
    erased = apply(train_transform((32, 32), hflip=0, erasing=1, **plain), image)
    changed = (erased != image).any(0)
    assert 0.01 < changed.float().mean() < 0.4
    assert (erased[:, changed] == torch.tensor(FILL)[:, None]).all()
    for policy in ("rand_augment", "trivial_augment"):
        transform = train_transform((32, 32), hflip=0, auto_augment=policy, **plain)
        results = {apply(transform, image, seed).numpy().tobytes() for seed in range(12)}
        assert len(results) > 6


# Mixing


def test_mixup_is_the_weighted_mean():
    a, b = (torch.from_numpy(pixels(seed=seed)).permute(2, 0, 1) for seed in (0, 1))
    mixed, share = mixup(a, b, 0.25)
    assert share == 0.25 and mixed.dtype == torch.uint8
    assert (mixed - (0.25 * a.float() + 0.75 * b.float())).abs().max() <= 0.5001
    assert torch.equal(mixup(a, b, 1.0)[0], a) and torch.equal(mixup(a, b, 0.0)[0], b)


def test_cutmix_reports_the_share_that_it_leaves():
    a, b = torch.zeros(3, 24, 32, dtype=torch.uint8), torch.ones(3, 24, 32, dtype=torch.uint8)
    shares = []
    for seed in range(200):
        torch.manual_seed(seed)
        mixed, share = cutmix(a, b, 0.5)
        assert share == pytest.approx(1 - mixed.float().mean().item())
        rows, columns = mixed[0].any(1).nonzero(), mixed[0].any(0).nonzero()
        window = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert window == mixed[0].sum()  # one rectangle
        assert share >= 0.48
        shares.append(share)
    assert min(shares) < 0.53 and np.mean(shares) < 0.75 and a.sum() == 0
    assert torch.equal(cutmix(a, b, 1.0)[0], a)


def mixed_samples(mixing: Mixing) -> list[dict]:
    """A black image of label 0, mixed with images of labels 0 to 9, each 20 times as bright."""
    shades = [np.full((16, 16, 3), 20 * label, np.uint8) for label in range(10)]
    names = [f"{label}.png" for label in range(10)]
    table = schema.rows(names, range(10), names, [stored_png(shade) for shade in shades])
    whole = train_transform((16, 16), scale=(1, 1), ratio=(1, 1))
    dataset = train_data(Reader(table, 10), whole, mixing)
    return [dataset[SampleKey(epoch, 0, 0)] for epoch in range(200)]


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)])
def test_the_share_belongs_to_the_image(mixing):
    samples = mixed_samples(mixing)
    assert {sample["label2"] for sample in samples} == set(range(10))
    for sample in samples:
        expected = (1 - sample["mix"]) * 20 * sample["label2"]
        assert sample["image"].float().mean().item() == pytest.approx(expected, abs=0.51)
    shares = [sample["mix"] for sample in samples]
    assert min(shares) < 0.15 and max(shares) > 0.85 and 0.35 < np.mean(shares) < 0.8


def test_both_methods_mix_half_of_the_samples_each():
    samples = mixed_samples(Mixing(mixup=1.0, cutmix=1.0))
    both = [s for s in samples if s["label2"] and s["mix"] < 0.95]
    windows = [len(s["image"].unique()) > 1 for s in both]  # CutMix leaves black pixels
    assert 0.3 < np.mean(windows) < 0.6


# Bad input


def spoil_jpeg(path):
    Image.fromarray(pixels()).save(path.with_suffix(".jpg"))
    path.unlink()
    path = path.with_suffix(".jpg")
    path.write_bytes(path.read_bytes()[:300])
    return path


def spoil_with_text(path):
    path.write_text("this is no picture")
    return path


def spoil_by_emptying(path):
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("spoil", [spoil_jpeg, spoil_with_text, spoil_by_emptying])
def test_a_bad_image_is_named_in_one_sentence(tmp_path, spoil):
    path = str(spoil(make_folder(tmp_path) / "train/cat/01.png"))
    reader = reader_of(load("folder", tmp_path))
    dataset = train_data(reader, mixing=Mixing(0.2))
    index = next(i for i in range(5) if dataset.name(i) == path)
    messages = []
    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            keys = [SampleKey(0, index, 0)]
            list(DataLoader(dataset, sampler=keys, batch_size=1, num_workers=workers))
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and path in messages[0] and is_one_sentence(messages[0])
    for workers in (0, 2):
        found = survey(reader, workers)
        assert [fault.sentence for fault in found.faults] == messages[:1]
        assert found.images == [2, 2] and found.samples == 5


def test_a_survey_counts_classes_and_sizes(tmp_path):
    make_folder(tmp_path, ("train",))
    make_folder(tmp_path, ("val",), (("cat", 2),))
    (tmp_path / "val/dog").mkdir()
    save_image(tmp_path / "train/dog/00.png", size=(30, 9))
    data = load("folder", tmp_path)
    lines = survey(reader_of(data)).lines(data.classes)
    assert lines[:2] == ["cat  3 images", "dog  2 images"]
    assert "12 to 30 pixels high, 9 to 16 wide; 4 of them 12x16" in lines[2]
    assert "0 images" in survey(reader_of(data, "val")).lines(data.classes)[1]


def test_a_row_with_a_wrong_label_is_named(tmp_path):
    data = load("folder", str(make_folder(tmp_path)))
    rows = datasets.Dataset.from_dict({"image": data.train["image"][:], "label": [7] * 5})
    with pytest.raises(UserError, match="label 7, which is none of the data set's 2") as caught:
        Reader(rows, 2).read(0)
    assert "00.png" in str(caught.value) and is_one_sentence(str(caught.value))


def test_a_folder_of_one_image_per_class_is_refused(tmp_path):
    make_folder(tmp_path, ("train",), counts=(("a", 1), ("b", 1)))
    with pytest.raises(UserError, match=r"All images of the class b .* would be held out"):
        load("folder", tmp_path)


def test_hub_labels_with_gaps(tmp_path):
    picture = {"path": None, "bytes": stored_png(pixels())}
    for name, values, words in (
        ("ids", [0, 10_000_000, 3], "no class ids"),
        ("missing", ["a", None, "b"], "label"),
    ):
        rows = datasets.Dataset.from_dict({"image": [picture] * 3, "label": values})
        rows.save_to_disk(str(tmp_path / name))
        with pytest.raises(UserError, match=words):
            load(f"hub:{tmp_path / name}")
