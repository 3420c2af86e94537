"""An index comes from the cache exactly as long as nothing that it was made of has changed."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from data.faults import Faults
from data.folders import IMAGE_SUFFIXES
from tasks.detection import index_cache
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.formats.yolo_files import reaches_outside
from tasks.detection.index_cache import in_cache
from tasks.detection.options import DetectionOptions
from tests.coco_folder import write_coco
from tests.test_detection_formats import make_yolo


class Counting:
    """A source that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, options: DetectionOptions, *more):
        self.calls += 1
        return load_coco(options, *more)


@pytest.fixture
def source(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "SMALL", 0)
    options = DetectionOptions(dataset="coco", data_dir=str(write_coco(tmp_path / "coco")))
    counting = Counting()
    return in_cache(counting), counting, options


def annotations(options: DetectionOptions) -> Path:
    return next(Path(options.data_dir).glob("annotations/*train*.json"))


def test_the_second_load_opens_the_same_data(source) -> None:
    load, counting, options = source
    first, second = load(options, Faults()), load(options, Faults())
    assert counting.calls == 1
    plain = load_coco(options, Faults())
    for data in (first, second):
        assert data.train[:] == plain.train[:] and data.val[:] == plain.val[:]
        assert data.train.features == plain.train.features
        assert replace(data, train=0, val=0) == replace(plain, train=0, val=0)
        assert data.train.cache_files  # mapped into memory, not copied


@pytest.mark.parametrize("change", ["file", "time", "image", "option", "cache"])
def test_whatever_changes_is_read_again(source, change: str, tmp_path: Path) -> None:
    load, counting, options = source
    load(options, Faults())
    file = annotations(options)
    if change == "file":
        file.write_text(file.read_text() + " ")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "image":
        next(p for p in Path(options.data_dir).rglob("*") if p.suffix in IMAGE_SUFFIXES).touch()
    elif change == "option":
        options = replace(options, model="maskrcnn_resnet50_fpn")
    else:
        next((tmp_path / "cache").rglob("*.arrow")).unlink()
    load(options, Faults())
    assert counting.calls == 2
    load(options, Faults())
    assert counting.calls == 2


def test_several_at_once_build_it_once(source) -> None:
    load, counting, options = source
    threads = [threading.Thread(target=load, args=(options, Faults())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counting.calls == 1


def test_without_a_place_for_the_cache_it_is_read(source, monkeypatch, tmp_path: Path) -> None:
    load, counting, options = source
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file"))
    assert len(load(options, Faults()).train) == len(load(options, Faults()).train)
    assert counting.calls == 2


def test_small_data_are_not_stored(source, monkeypatch, tmp_path: Path) -> None:
    load, _, options = source
    monkeypatch.setattr(index_cache, "SMALL", 10**9)
    load(options, Faults())
    assert not (tmp_path / "cache").exists()


def test_images_elsewhere_are_not_stored(source, tmp_path: Path) -> None:
    load, counting, options = source
    root = Path(options.data_dir)
    folder = annotations(options).stem.removeprefix("instances_")
    images = next(path for path in root.rglob(folder) if path.is_dir())
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    load(options, Faults()), load(options, Faults())
    assert counting.calls == 2


@pytest.mark.parametrize("named", ["list", "classes", "nothing"])
def test_what_a_description_names_elsewhere_is_not_stored(source, tmp_path, named) -> None:
    root, elsewhere = make_yolo(tmp_path / "yolo"), tmp_path / "elsewhere.txt"
    places = {split: root / f"images/{split}" for split in ("train", "val")}
    if named == "list":
        images = [path for path in places["train"].rglob("*") if path.suffix in IMAGE_SUFFIXES]
        elsewhere.write_text("\n".join(map(str, images)))
        places["train"] = elsewhere
    elsewhere_names = elsewhere if named == "classes" else root / "names.txt"
    lines = [f"{split} = {place}" for split, place in places.items()]
    (root / "data.yaml").unlink(missing_ok=True)
    (root / "obj.data").write_text("\n".join([*lines, f"names = {elsewhere_names}"]))
    elsewhere_names.write_text("cat\ndog\n")
    calls = []

    def counted(*given):
        calls.append(1)
        return load_yolo(*given)

    load = in_cache(counted, reaches_outside)
    for _ in range(2):
        data = load(DetectionOptions(dataset="yolo", data_dir=str(root)), Faults())
        assert data.classes == ["cat", "dog"]
    assert len(calls) == (1 if named == "nothing" else 2)
