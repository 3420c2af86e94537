"""Detection on what real data have: empty pictures, crowds, one class, a class nobody drew."""

import json
from pathlib import Path

import numpy as np
import pytest

from errors import UserError
from tests.coco_folder import write_coco

SCRIPT = "train_detection"


@pytest.mark.parametrize(
    "model", ["yolo_nano", "retinanet", "fcos", "fasterrcnn", "ssdlite320_mobilenet_v3_large"]
)
def test_gaps_in_the_data(train, tmp_path: Path, model: str) -> None:
    folder = write_coco(tmp_path / "coco", empty=0.7)
    run = train(dataset="coco", data_dir=str(folder), model=model, limit_val=0, max_steps=6)
    assert run.status == 0
    assert all(np.isfinite(run.losses))
    counts = [line["objects_per_image"] for line in run.steps]
    assert min(counts) == 0 < max(counts)  # a batch without any object is among them
    metrics = run.evals[-1]
    assert {"ap/disk", "ap/square", "ap/triangle"} <= set(metrics)
    assert "ap/nowhere" not in metrics and np.isfinite(metrics["loss"])


def test_a_single_class(train, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", classes=1, empty=0.2)
    run = train(dataset="coco", data_dir=str(folder))
    assert run.evals[-1]["ap"] == pytest.approx(run.evals[-1]["ap/disk"])


def test_nothing_to_find_in_validation(train, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", empty_val=1.0)
    run = train(dataset="coco", data_dir=str(folder))
    assert run.status == 0
    assert run.evals[-1]["ap"] == 0 and np.isfinite(run.evals[-1]["loss"])


def test_masks_are_scored_too(train) -> None:
    run = train(model="maskrcnn_resnet50_fpn", max_steps=1, limit_val=2)
    assert {"ap", "mask_ap", "mask_ap50"} <= set(run.evals[-1])
    assert {"loss_mask", "loss_objectness"} <= set(run.steps[-1])


def test_check_data_names_what_is_wrong(train, tmp_path: Path, capsys) -> None:
    folder = write_coco(tmp_path / "coco", train=6, val=3, empty=0.0)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    (folder / "train2017" / "004.png").write_bytes(b"no picture")
    run = train(dataset="coco", data_dir=str(folder), limit_train=0, check_data=True)
    assert run.status == 1
    printed = capsys.readouterr().out
    assert "004.png" in printed and "000.png" in printed and "no area" in printed


def test_picture_score_decides_what_is_drawn(train) -> None:
    pictures = []
    for score in (0.0, 1.0):
        run = train(str(score), picture_score=score)
        pictures.append((run.path / "predictions.png").read_bytes())
    assert len(pictures[0]) > len(pictures[1])


def test_one_value_per_channel_is_explained(train) -> None:
    with pytest.raises(UserError, match="one value per channel"):
        train(image_size=[32, 32], batch_size=1)
