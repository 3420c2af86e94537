"""What predict.py reads and where it writes: data sets, names, folders that grow."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.about import About, data_of, parse_about
from errors import UserError
from inference.options import PredictOptions
from inference.rows import DatasetSource
from inference.tasks import options_class
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
    with pytest.raises(UserError, match="--data_options"):
        source(model, **given)


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
