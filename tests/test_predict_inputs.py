"""What predict.py reads and where it writes: data sets, names, folders that grow."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from engine.about import About, data_of, different_classes, parse_about
from engine.command_line import parse
from errors import UserError
from inference.files import FileSource
from inference.inputs import Input, keeping, out_names
from inference.options import PredictOptions
from inference.output import OutputFolder
from inference.rows import DatasetSource
from inference.tasks import option_values, options_class
from inference.weights import load_model
from tasks.classification.inference import ClassificationResult
from tasks.classification.sources import load_data

GREY = [[0, 0, 0]]


def trained(task: str, classes: list[str], **options: Any) -> Any:
    """All that a data set needs to know of weights, as it is read back from their file."""
    given = options_class(task)(**options)
    about = About(
        task, {"model": given.model}, classes, GREY * len(classes), {}, data=data_of(given)
    )
    about = parse_about(next(v for v in about.to_header().values() if v != "pt"), "here")
    media = "video" if task == "video" else "image"
    return SimpleNamespace(about=about, inference=SimpleNamespace(media=media))


def source(model: Any, **options: Any) -> DatasetSource:
    return DatasetSource(PredictOptions(weights="w", output="out", **options), model)


def picture(path: Path, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size[::-1], 3), 90, np.uint8)).save(path)
    return path


def test_what_training_held_out_is_scored(tmp_path) -> None:
    for number in range(24):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png")
    given = {"dataset": "folder", "data_dir": str(tmp_path)}
    split = load_data(options_class("classification")(fold="2/5", **given))
    held_out = {Path(cell["path"]).name for cell in split.val["image"]}
    model = trained("classification", ["a", "b"], fold="2/5", **given)
    assert str(tmp_path) not in json.dumps(model.about.to_header())
    found = source(model, **given)
    assert {Path(each.name).name for each in found.inputs} == held_out
    assert "fold=2/5" in found.notes[0]
    other = source(model, data_options=["val_share=0.5"], **given)
    assert len(other.inputs) != len(held_out) and "fold" not in other.notes[0]
    for name in "ab":
        picture(tmp_path / "train" / name / "y.png")
        picture(tmp_path / "val" / name / "x.png")
    with pytest.raises(UserError, match="--data_options fold=null"):
        source(model, **given)
    assert len(source(model, data_options=["fold=null"], **given).inputs) == 2


def test_masks_are_resized_as_in_training(tmp_path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / "x.png", (40, 32))
        (tmp_path / split / "masks").mkdir()
        Image.new("L", (20, 16), 1).save(tmp_path / split / "masks" / "x.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    given = {"dataset": "folder", "data_dir": str(tmp_path)}
    model = trained("segmentation", ["a", "b"], resize_masks=True, **given)
    with source(model, **given).open(0) as (image, mask):
        assert tuple(mask.shape) == tuple(image.shape[1:]) == (32, 40)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_data_may_lack_a_class_of_the_weights(task, tmp_path) -> None:
    names = ["ant", "bee", "cow"]
    classes = names if task == "detection" else ["background", *names]
    for split, name in (("train", "cow"), ("val", "_background_"), ("val", "ant")):
        if task == "detection" and name.startswith("_"):
            continue
        path = picture(tmp_path / split / f"{name}.png")
        shape = {"label": name, "shape_type": "rectangle", "points": [[2, 2], [9, 9]]}
        content = {"imagePath": path.name, "imageHeight": 16, "imageWidth": 20, "shapes": [shape]}
        path.with_suffix(".json").write_text(json.dumps(content))
    given = {"dataset": "labelme", "data_dir": str(tmp_path)}
    found = source(trained(task, classes, **given), **given)
    labels = []
    for number in range(len(found.inputs)):
        with found.open(number) as (_, truth):
            labels += truth["labels"].tolist() if task == "detection" else truth.unique().tolist()
    assert set(labels) == ({0} if task == "detection" else {0, 1})


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_data_with_a_class_that_the_weights_lack_is_refused(task, tmp_path) -> None:
    for split in ("train", "val"):
        path = picture(tmp_path / split / "x.png")
        shape = {"label": "emu", "shape_type": "rectangle", "points": [[2, 2], [9, 9]]}
        content = {"imagePath": path.name, "imageHeight": 16, "imageWidth": 20, "shapes": [shape]}
        path.with_suffix(".json").write_text(json.dumps(content))
    given = {"dataset": "labelme", "data_dir": str(tmp_path)}
    model = trained(task, ["ant", "bee"] if task == "detection" else ["background", "ant"])
    with pytest.raises(UserError, match="the weights \\(which have no emu\\)") as caught:
        source(model, **given)
    assert "class_names" not in str(caught.value)
    (tmp_path / "val" / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json"):
        source(model, **given)


def test_only_data_of_numbers_is_told_to_name_its_classes() -> None:
    said = {}
    for task, dataset in (("detection", "yolo"), ("detection", "fake"), ("classification", "x")):
        options = options_class(task)(dataset=dataset)
        error = different_classes("it", ["a", "b"], ["b", "a"], options, "--class_names")
        said[dataset] = str(error)
        assert "first a instead of b" in said[dataset]
    assert [name for name, text in said.items() if "--class_names" in text] == ["yolo"]


@pytest.mark.parametrize(
    "entry, words",
    [
        ("exif=banana", "--exif is banana; give one of turn, ignore"),
        ("limit_val=two", "limit_val"),
        ("limit_val=[1", "limit_val"),
        ("limit_val=-1", "at least 0"),
        ("lr=3", "takes no lr"),
        ("max_detections=1", "takes no max_detections"),
        ("dataset=coco", "takes no dataset"),
        ("data_dir=/x", "takes no data_dir"),
        ("num_workers=1", "takes no num_workers"),
        ("color=red", "no option color"),
        ("exif", "name=value"),
    ],
)
def test_what_is_no_option_of_the_data_is_refused(entry, words, tmp_path) -> None:
    picture(tmp_path / "x.png")
    given = {"dataset": "labelme", "data_dir": str(tmp_path), "data_options": [entry]}
    with pytest.raises(UserError) as caught:
        source(trained("detection", ["a"]), **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry, words",
    [
        ("image_size={", "image_size"),
        ("image_size=8,8", "at least 32"),
        ("lr=1", "takes no lr"),
        ("model=yolo_s", "takes no model"),
    ],
)
def test_what_is_no_option_of_a_model_is_refused(entry, words, tmp_path) -> None:
    (tmp_path / "bare.safetensors").write_bytes(b"")
    given = {"task": "detection", "model": "yolo_nano", "class_names": "a,b"}
    options = PredictOptions(
        weights=str(tmp_path / "bare.safetensors"), model_options=[entry], **given
    )
    with pytest.raises(UserError) as caught:
        load_model(options, Accelerator(cpu=True))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_options_by_name_are_read_as_their_flags_are() -> None:
    entries = ["image_size=64,96", "image_column=a,b", "fold=null", "class_names=1,b"]
    values = option_values("detection", entries, "data_options", lambda option: True)
    assert values == {
        **{"image_size": [64, 96], "image_column": "a,b", "fold": None},
        "class_names": ["1", "b"],
    }


def names(source: FileSource) -> list[str]:
    return [each.name for each in source.inputs]


def test_results_are_no_inputs(tmp_path, monkeypatch) -> None:
    picture(tmp_path / "p" / "x.jpg")
    picture(tmp_path / "p" / "out" / "pictures" / "x.jpg")
    picture(tmp_path / "p" / "out" / "raw" / "y.jpg")
    monkeypatch.chdir(tmp_path / "p")
    assert names(FileSource(".", "image", "out")) == ["out/raw/y.jpg", "x.jpg"]
    assert names(FileSource("**/*.jpg", "image", "out")) == ["out/raw/y.jpg", "x.jpg"]
    assert names(FileSource("out/raw", "image", "out")) == ["y.jpg"]
    for over in ("out/pictures", "out/pictures/x.jpg", str(tmp_path / "p/out/pictures")):
        with pytest.raises(UserError, match="another --output"):
            FileSource(over, "image", "out")


def test_videos_are_found_as_training_finds_them(tmp_path) -> None:
    frames = [Image.new("RGB", (20, 16), (30 * n, 0, 0)) for n in range(4)]
    (tmp_path / "all" / "gifs").mkdir(parents=True)
    for name in "ab":
        place = tmp_path / "all" / "gifs" / f"{name}.gif"
        frames[0].save(place, save_all=True, append_images=frames[1:])
    for number in range(3):
        picture(tmp_path / "all" / "clip" / f"{number}.png")
    (tmp_path / "all" / "clip" / "notes.md").write_text("no frame")
    found = FileSource(str(tmp_path / "all"), "video")
    assert names(found) == ["clip", "gifs/a.gif", "gifs/b.gif"]
    for number, each in enumerate(found.inputs):
        with found.open(number) as (video, _):
            assert each.kind == "video" and len(video.times) == (3 if each.name == "clip" else 4)
    assert names(FileSource(str(tmp_path / "all" / "gifs"), "video")) == ["a.gif", "b.gif"]
    one = FileSource(str(tmp_path / "all" / "clip"), "video")
    with one.open(0) as (video, _):
        assert len(one.inputs) == 1 and len(video.times) == 3


def test_a_place_once_taken_stays() -> None:
    first = [Input("a/x.jpg", "x", "a/x.jpg", "image")]
    both = [Input(n, o, n, "image") for n, o in (("x.jpg", "x"), ("a/x.jpg", "a/x"))]
    kept = keeping(both, {first[0].name: first[0].out})
    assert [each.out for each in kept] == ["x-2", "x"]
    assert keeping(both, {}) == both


def test_names_that_are_not_utf8_can_be_written(tmp_path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        picture(Path(path))
    except OSError:
        pytest.skip("the file system takes no such names")
    for given in (path, str(tmp_path)):
        found = FileSource([given], "image")
        assert found.inputs[0].out == "caf%E9" and found.inputs[0].name.encode()
        with found.open(0) as (image, _):
            assert image.shape == (3, 16, 20)
    Path(path).rename(Path(path).with_suffix(".mp4"))
    assert names(FileSource(str(tmp_path), "video")) == ["caf%E9.mp4"]


def test_any_name_reaches_the_list_of_inputs() -> None:
    words = [
        "a.png",
        *(f"{c}.png" for c in "\udcff\x7f\x85\u2028\ufeff\uffff\x01\n'\"\\€\U0001f600"),
    ]
    options = parse(PredictOptions, "", ["--weights=w", "--output=o", "--input", *words])
    assert options.input == words


class Source:
    """Inputs without anything behind them."""

    notes: tuple[str, ...] = ()
    is_scored = False

    def __init__(self, *names: str) -> None:
        outs = out_names(names)
        self.inputs = [Input(n, out, n, "image") for n, out in zip(names, outs, strict=True)]


def output(path: Path, source: Source, **options: Any) -> OutputFolder:
    (path.parent / "best.safetensors").write_bytes(b"weights")
    given = {"weights": str(path.parent / "best.safetensors"), "output": str(path), "input": "all"}
    model = trained("classification", ["a", "b"])
    model.classes, model.precision, model.inference.colors = ["a", "b"], "no", GREY * 2
    return OutputFolder(PredictOptions(**given | options), model, source, Accelerator(cpu=True))


def test_nothing_is_lost_when_going_on(tmp_path, capsys) -> None:
    result = ClassificationResult(torch.tensor([0.25, 0.75]), ["a", "b"])
    first = output(tmp_path / "out", Source("a/x.jpg", "a/bad.jpg"))
    first.succeeded(0, None, result, None)
    first.failed(1, "it is broken \udce9")
    assert first.conclude() == 1 and "%E9" in capsys.readouterr().out
    before = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    for changed in ({"input": "b"}, {"data_options": ["fold=1/5"]}, {"max_frames": 3}):
        with pytest.raises(UserError, match=f"another {next(iter(changed))}"):
            output(tmp_path / "out", Source("a/x.jpg"), skip_done=True, **changed)
    with pytest.raises(UserError, match=r"results of a/x\.jpg"):
        output(tmp_path / "out", Source("b/x.jpg"), skip_done=True)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == before
    again = output(tmp_path / "out", Source("x.jpg", "a/x.jpg"), skip_done=True)  # without bad.jpg
    assert again.todo == [0] and [each.out for each in again.source.inputs] == ["x-2", "x"]
    again.succeeded(0, None, result, None)
    assert again.conclude() == 0 and len(list(again.records())) == 2


def test_weights_of_a_pipeline_know_their_data_too() -> None:
    from pipeline.options import PipelineOptions
    from pipeline.training import PipelineTrainer

    options = PipelineOptions(dataset="folder", fold="2/5")
    state = SimpleNamespace(model=torch.nn.Identity(), progress=SimpleNamespace(step=1, metrics={}))
    stub = SimpleNamespace(options=options, classes=["a", "b"], device="cpu", state=state)
    data = PipelineTrainer._about(stub).data
    assert (data["dataset"], data["fold"]) == ("folder", "2/5")
