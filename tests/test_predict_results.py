"""What predict.py, export.py and share.py do with results: memory, failures, films, data sets."""

import contextlib
import json
import re
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import exporting.write
import inference.loop
from data import on_disk
from data.faults import Faults
from data.tiles import Tiles
from engine.about import About
from errors import UserError
from exporting.options import ExportOptions
from inference.averaging import Averaged
from inference.data_sets import CocoFolder, VocFolder, picture_name
from inference.films import _predict
from inference.inputs import Input, out_names
from inference.loop import Items, Writers
from inference.options import PredictOptions
from inference.task_output import task_output
from inference.trained import Trained, inference_of
from inference.weights import _use_tiles
from sharing.upload import _without_places
from tasks.detection.formats.voc import load_voc
from tasks.detection.inference import DetectionResult
from tasks.detection.options import DetectionOptions
from tasks.segmentation import tiles
from tasks.segmentation.inference import SegmentationResult

RED_BLUE = [(255, 0, 0), (0, 0, 255)]


def trained(
    task: str, classes: list[str], network: nn.Module | None = None, **given: Any
) -> Trained:
    about = About(task, given, classes, (RED_BLUE * 40)[: len(classes)], {})
    inference = inference_of(about, torch.device("cpu"))
    return Trained(inference, network or inference.build_model().eval(), about)


class Left(nn.Module):
    """Segmentation that sees the class 0 everywhere."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(len(images), 2, *images.shape[-2:])
        logits[:, 0] = 1
        return {"out": logits}


class OnePicture:
    def __init__(self, media: Any) -> None:
        self.media, self.inputs = media, [Input("film", "film", "film.mp4", "video")]

    def open(self, number: int) -> Any:
        return contextlib.nullcontext((self.media, None))


@pytest.mark.parametrize("size", [None, [32, 32]])
def test_large_pictures_in_tiles(size, monkeypatch) -> None:
    monkeypatch.setattr(on_disk, "LARGE", 1000)
    model = trained("segmentation", ["a", "b"], Left(), eval_size=size, eval_tile=32)
    items = Items(model, OnePicture(torch.zeros(3, 50, 70, dtype=torch.uint8)), with_media=True)
    failed, [(pixels, samples)] = items.collate([items[0]])
    (result,) = model.of_batch(pixels, samples)
    assert not failed and tuple(result.mask.shape) == (50, 70) and not result.mask.any()
    assert isinstance(samples[0]["media"], on_disk.PictureOnDisk) == (size is None)


def test_what_waits_is_bounded_by_its_bytes(monkeypatch) -> None:
    monkeypatch.setattr(inference.loop, "WAITING_BYTES", 1000)
    written = []
    folder = SimpleNamespace(succeeded=lambda number, *_: written.append(number))
    with Writers(folder) as writers:
        for number in range(4):
            writers.submit(number, torch.zeros(3, 10, 10), None, None)
            assert writers.bytes <= 1000
        writers.submit(4, torch.zeros(3, 100, 100), None, None)
        assert not writers.pending and len(written) == 5


@pytest.mark.parametrize(
    "raised, reason",
    [
        (torch.OutOfMemoryError("CUDA"), "--tile"),
        (RuntimeError("kernel is larger\nthan the input"), r"\(kernel is larger\)"),
        (av.error.InvalidDataError(1, "Invalid data found"), "decoded"),
    ],
)
def test_a_film_that_fails_ends_no_other(raised, reason, monkeypatch) -> None:
    def fails(*_: Any) -> Any:
        if films:
            raise films.pop()
        return {"frames": 1}

    films, failed, added = [raised], [], []
    monkeypatch.setattr(inference.loop, "predict_film", fails)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    source = OnePicture(None)
    source.inputs *= 2
    folder = SimpleNamespace(
        todo=[0, 1],
        task=None,
        failed=lambda *pair: failed.append(pair),
        add=lambda *a: added.append(a),
    )
    alone = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
    model = SimpleNamespace(inference=SimpleNamespace(media="image", tiles=None))
    options = SimpleNamespace(every=0, batch_size=1)
    inference.loop.predict_all(alone, model, source, folder, options)
    ((number, text),) = failed
    assert number == 0 and len(added) == 1 and re.search(reason, text)


def test_frames_that_are_too_many_at_a_time_are_taken_one_by_one(monkeypatch) -> None:
    def predict(pictures: list[int], batch_size: int) -> list[int]:
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA")
        return pictures

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert _predict(SimpleNamespace(predict=predict), [1, 2, 3], 8) == [1, 2, 3]


def test_frames_of_a_film_are_of_one_height() -> None:
    from inference.segmentation import SegmentationOutput

    classes = [f"class number {n}" for n in range(30)]
    model = trained("segmentation", classes, Left())
    options = SimpleNamespace(every=0, save=[], score=0.3, top=5)
    task = SegmentationOutput(model, options, Path("out"))
    picture = torch.zeros(3, 320, 320, dtype=torch.uint8)
    masks = (
        torch.zeros(320, 320, dtype=torch.uint8),
        torch.arange(320).div(11).byte().expand(320, 320),
    )
    results = [SegmentationResult(mask.contiguous(), classes) for mask in masks]
    one, all_of_them = (task.draw_frame(picture, each) for each in results)
    assert one.shape == all_of_them.shape == task.draw(picture, results[1]).shape
    assert task.draw(picture, results[0]).shape[1] < one.shape[1]


def test_rescaled_bytes_are_rounded() -> None:
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    images = torch.tensor([10, 11, 10, 11], dtype=torch.uint8).repeat(6).reshape(1, 1, 4, 6)
    Averaged(network, "classification", False, [0.5], 100)(images.expand(1, 3, 4, 6))
    exact = nn.functional.interpolate(
        images.float(), (2, 3), mode="bilinear", align_corners=False, antialias=True
    )
    assert torch.equal(seen[0][:, :1], exact.round().byte())


def test_pictures_of_any_name_become_a_data_set(tmp_path) -> None:
    picture = torch.zeros(3, 8, 9, dtype=torch.uint8)
    result = DetectionResult(
        (8, 9), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), ["a"]
    )
    folder, records = CocoFolder(tmp_path / "coco", ["a"]), []
    for name in ("plain", "v1.2", "odd[1].xyz"):
        (tmp_path / name).write_bytes(b"not looked at")
        each = Input(name, name, str(tmp_path / name), "image")
        folder.add(each, picture, result)
        records.append({"size": [8, 9], "objects": [], "picture": picture_name(each)})
    folder.conclude(records, 0.3)
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_val.json").read_text())
    assert len(content["images"]) == 3
    for entry in content["images"]:
        assert (tmp_path / "coco" / "images" / entry["file_name"]).suffix == ".png"
        assert (tmp_path / "coco" / "images" / entry["file_name"]).is_file()


def test_a_list_of_names_can_be_read_back(tmp_path) -> None:
    picture = torch.zeros(3, 8, 9, dtype=torch.uint8)
    box = torch.tensor([[1.0, 1.0, 5.0, 5.0]])
    result = DetectionResult((8, 9), box, torch.ones(1), torch.zeros(1).long(), ["a"])
    names = ["a\nb.png", "a_b.png", "\x01.png", " c.png", "d .png", "e f.png", "g\u2028.png"]
    folder, outs = VocFolder(tmp_path, ["a"]), out_names(names)
    for name, out in zip(names, outs, strict=True):
        folder.add(Input(name, out, None, "image"), picture, result)
    folder.conclude([{"out": out} for out in outs], 0.3)
    data = load_voc(DetectionOptions(dataset="voc", data_dir=str(tmp_path)), faults := Faults())
    faults.stop_if_any()
    assert len(data.train) == len(data.val) == len(names) and len(set(outs)) == len(names)


def test_a_detector_of_tiles_is_exported_for_its_own_size(tmp_path, monkeypatch) -> None:
    def stop(form: Any, images: torch.Tensor, task: str) -> Any:
        raise UserError(f"size {tuple(images.shape)}")

    monkeypatch.setattr(exporting.write, "_traced", stop)
    (tmp_path / "best.safetensors").write_bytes(b"")
    model = trained("detection", ["a"], model="yolo_nano", image_size=[96, 128], eval_tile=64)
    options = ExportOptions(str(tmp_path / "best.safetensors"), "torch_export", str(tmp_path / "m"))
    with pytest.raises(UserError, match=r"size \(1, 3, 96, 128\)"):
        exporting.write.export(model, options)


@pytest.mark.parametrize(
    "given, shared",
    [
        ("hub:/home/me/data", "hub:data"),
        ("hub:~/pets", "hub:pets"),
        ("hub:./a/pets", "hub:pets"),
        ("hub:owner/pets-2", "hub:owner/pets-2"),
        ("hub:mnist", "hub:mnist"),
    ],
)
def test_no_folder_of_the_hub_option_is_shared(given, shared) -> None:
    assert _without_places({"dataset": given})["dataset"] == shared


@pytest.mark.parametrize("size", [(31, 57), (7, 5), (10, 40), (31, 12), (10, 12)])
def test_enlarging_in_bands_is_interpolation(size, monkeypatch) -> None:
    logits = torch.randn(2, 3, 10, 12, dtype=torch.float64)
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    monkeypatch.setattr(tiles, "VALUES", 2 * 3 * size[1] * 4)
    parts = list(tiles.enlarged(logits, size))
    assert len(parts) == (1 if size == (10, 12) else ceil(size[0] / 4))
    whole = torch.full_like(expected, torch.nan)
    for window, part in parts:
        window.of(whole).copy_(part)
    assert torch.allclose(whole, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "task, useless, words",
    [
        ("segmentation", {"top": 3}, "--top is for classification and video"),
        ("segmentation", {"score": 0.0}, "--score is for detection"),
        ("detection", {"every": 1.0}, "--every is for video"),
        ("video", {"save": ["curves"]}, "give --every too"),
    ],
)
def test_what_does_nothing_for_a_task_is_refused(task, useless, words, tmp_path) -> None:
    with pytest.raises(UserError, match=words):
        task_output(trained(task, ["a", "b"]), PredictOptions(**useless), tmp_path)


@pytest.mark.parametrize(
    "given, expected",
    [
        ((None, None), Tiles(128, 0.4)),
        ((None, 0.5), Tiles(128, 0.5)),
        ((64, None), Tiles(64, 0.4)),
        ((64, 0.1), Tiles(64, 0.1)),
        ((0, None), None),
    ],
)
def test_tiles_are_evaluation_s_where_nothing_is_given(given, expected) -> None:
    model = trained("detection", ["a"], model="yolo_nano", eval_tile=128, eval_overlap=0.4)
    _use_tiles(model, *given)
    assert model.inference.tiles == expected
    with pytest.raises(UserError, match="give --tile too"):
        _use_tiles(model, 0, 0.5)
