"""Training of detection on what real data have: empty images, crowds, one class, an unused one."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.png import stored_png
from engine.plan import make_plan
from errors import UserError
from models.detector_interface import DetectorLosses
from tasks.detection import inference
from tasks.detection import task as detection
from tasks.detection.metrics import LIMITS, RECALLS, Precision
from tasks.detection.options import DetectionOptions
from tasks.detection.sources import load_data
from tests.coco_folder import write_coco
from tests.table import SCRIPTS

SCRIPT = "train_detection"


class Oracle(nn.Module):
    """A detector that is told what to find, or finds nothing; its loss is 3 per image."""

    divides_by = "images"

    def forward(self, images: Tensor, targets: dict | None = None, detect: bool = False):
        """Losses and detections, as models/detector_interface.py says."""
        if targets is None:
            nothing = torch.zeros(0)
            return [{"boxes": nothing.view(0, 4), "scores": nothing, "labels": nothing.long()}]
        found = []
        for number, labels in enumerate(targets["labels"]):
            real = labels >= 0
            image = {"boxes": targets["boxes"][number][real], "labels": labels[real]}
            image["masks"] = targets["masks"][number][real].float()
            found.append(image | {"scores": torch.ones(int(real.sum()))})
        losses = DetectorLosses({"some": images.new_tensor(3.0 * len(images))})
        return (losses, found) if detect else losses


def task_of(**options: object) -> detection.Detection:
    """The task that options name."""
    parsed = DetectionOptions(**SCRIPTS[SCRIPT].tiny | options)
    data = load_data(parsed)
    return detection.Detection(parsed, data, make_plan(parsed, 16, 1), torch.device("cpu"))


def test_the_truth_scores_one() -> None:
    # Wide images in a square: what is found has to go back through the letterbox.
    options = {"limit_train": 1, "limit_val": 7, "model": "maskrcnn_resnet50_fpn"}
    task = task_of(**options, image_size=[48, 96])
    task.val_data.transform.image_size = (192, 192)
    batches = DataLoader(task.val_data, batch_size=3, collate_fn=task.collate_eval)
    tally = task.evaluate(Oracle(), batches)
    metrics = task.score(tally.sums, tally.records).metrics
    for name in ("ap", "ap75", "ar100", "mask_ap", "mask_ap75"):
        assert metrics[name] > 0.99, name
    assert metrics["loss"] == 3
    found = tally.records[0].found
    found["boxes"][found["image"] == 0] += 100
    assert task.score(tally.sums, tally.records).metrics["ap"] < 0.95


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


def test_nothing_to_find_in_validation_is_refused(train, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", empty_val=1.0)
    with pytest.raises(UserError, match="No validation image"):
        train(dataset="coco", data_dir=str(folder))


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
    (folder / "train2017" / "004.png").write_bytes(b"no image")
    run = train(dataset="coco", data_dir=str(folder), limit_train=0, check_data=True)
    assert run.status == 1
    printed = capsys.readouterr().out
    assert "004.png" in printed and "000.png" in printed and "no area" in printed


def test_figures_show_crowds_and_curves_in_the_classes_colours(tmp_path, monkeypatch) -> None:
    seen = {}

    def panel(image: Tensor, truth: dict, *others: object) -> Tensor:
        seen["crowds"] = seen.get("crowds", 0) + int(truth["iscrowd"].sum())
        return image

    def curves(curves: dict, ap: dict, colors: dict) -> Tensor:
        seen["colors"] = colors
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(detection, "detection_panel", panel)
    monkeypatch.setattr(detection, "pr_curves_figure", curves)
    folder = write_coco(tmp_path / "coco", empty_val=0.0)
    task = task_of(dataset="coco", data_dir=str(folder), limit_val=0, pictures=16)
    details = Precision({}, curves={"triangle": np.ones_like(RECALLS)})
    assert set(task.figures(Oracle(), details)) == {"precision_recall", "predictions"}
    assert seen["crowds"] == sum(sum(row["iscrowd"]) for row in task.data.val["objects"]) > 0
    assert seen["colors"] == dict(zip(task.data.classes, task.data.colors, strict=True))


def test_options_reach_the_model(train, monkeypatch) -> None:
    build, seen = inference.build_detection_model, {}

    def spy(name: str, num_classes: int, **options: object) -> nn.Module:
        seen.update(options)
        model = build(name, num_classes, **options)
        seen["model"] = model
        return model

    monkeypatch.setattr(inference, "build_detection_model", spy)
    train(max_detections=7, max_steps=1)
    assert seen["model"].detections_per_img == 7
    assert seen["class_names"] == ["disk", "square", "triangle", "ring", "cross", "star"]


def test_options_reach_the_data(train, tmp_path: Path, capsys) -> None:
    image = stored_png(np.zeros((200, 300, 3), np.uint8))
    numbers = datasets.List(datasets.Value("float32"))
    things = {"bbox": datasets.List(numbers), "label": datasets.List(datasets.Value("int32"))}
    rows = datasets.Dataset.from_dict(
        {
            "photo": [{"bytes": image, "path": None}] * 4,
            "things": [{"bbox": [[0.5, 0.5, 0.6, 0.9]], "label": [1]}] * 4,
        },
        features=datasets.Features({"photo": datasets.Image(), "things": things}),
    )
    rows.save_to_disk(str(tmp_path / "saved"))
    columns = {"image_column": "photo", "objects_column": "things", "bbox_format": "yolo"}
    names = {"class_names": ["apple", "pear"], "check_data": True}
    assert train(dataset=f"hub:{tmp_path / 'saved'}", **columns, **names).status == 0
    printed = capsys.readouterr().out
    assert "pear        3 boxes in 3 images" in printed and "100 % large" in printed


def test_no_more_detections_than_coco_counts() -> None:
    DetectionOptions(max_detections=LIMITS[-1]).check()
    for wrong in (0, LIMITS[-1] + 1):
        with pytest.raises(UserError, match="--max_detections"):
            DetectionOptions(max_detections=wrong).check()


def test_mosaic_ends_within_an_epoch(train) -> None:
    options = {"mosaic": 1.0, "mixup": 1.0, "max_steps": 2}
    never, half, always = (
        train(str(share), close_mosaic=share, **options).losses for share in (0.0, 0.5, 1.0)
    )
    assert half[0] == never[0] != always[0]
    assert half[1] != never[1]


def test_picture_score_decides_what_is_drawn(train) -> None:
    figures = []
    for score in (0.0, 1.0):
        run = train(str(score), picture_score=score)
        figures.append((run.path / "predictions.png").read_bytes())
    assert len(figures[0]) > len(figures[1])


def test_one_value_per_channel_is_explained(train) -> None:
    with pytest.raises(UserError, match="one value per channel"):
        train(image_size=[32, 32], batch_size=1)
