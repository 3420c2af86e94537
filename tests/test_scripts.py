"""What detection, video and classification each have of their own, in this process.

What the scripts share is tested with segmentation: files, options of every script, resuming.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_classification
from errors import UserError
from tasks.classification.dataset import load_classification
from tests.conftest import Run, train_here


@dataclass
class Case:
    """What is expected of a script.

    Args:
        task: in the summary.
        metrics: some that an evaluation has.
        scalars: some that a training step has, beside the loss.
        pictures: all that an evaluation draws.
        changes: options of which each gives another training.
        same: options of which each gives the same training.
        mistakes: options that are refused, and words of the message.
    """

    task: str
    metrics: set[str]
    pictures: set[str]
    changes: list[dict]
    mistakes: list[tuple[dict, str]]
    scalars: set[str] = field(default_factory=set)
    same: list[dict] = field(default_factory=list)


CASES = {
    "train_detection": Case(
        task="detection",
        metrics={"ap", "ap50", "ap75", "ar100", "loss"},
        scalars={"loss_cls", "loss_box", "positives_per_image", "objects_per_image"},
        pictures={"predictions", "precision_recall"},
        changes=[
            {"model": "yolo_s"},
            {"backbone": "timm/test_resnet"},
            {"scale_range": [1.0, 1.0]},
            {"hflip": 1.0},
            {"color_jitter": [0, 0, 0, 0]},
            {"iou_crop": 1.0},
            {"mosaic": 1.0},
            {"mixup": 1.0},
            {"copy_paste": 1.0},
            {"image_size": [64, 96]},
            {"precise_bn": 2},
        ],
        same=[
            {"num_workers": 2},
            {"mosaic": 1.0, "mixup": 1.0, "close_mosaic": 1.0},
            {"picture_score": 0.0},
        ],
        mistakes=[
            ({"model": "yolo_nan"}, "yolo_nano"),
            ({"image_size": [16, 64]}, "--image_size"),
            ({"mosaic": 1.5}, "--mosaic"),
            ({"scale_range": [2, 1]}, "--scale_range"),
            ({"scale_range": [1, float("inf")]}, "--scale_range"),
            ({"color_jitter": [0, 0, 0, 1]}, "--color_jitter"),
            ({"dataset": "coco"}, "--data_dir"),
            ({"dataset": "cocoa"}, "coco"),
            ({"trainable_layers": 2}, "--trainable_layers"),
            ({"weights": "default"}, "no published weights"),
            ({"model": "fcos_resnet50_fpn", "backbone": "timm/test_resnet"}, "built in"),
        ],
    ),
    "train_video": Case(
        task="video",
        metrics={"top1", "top5", "mean_recall", "loss"},
        scalars={"looped_per_image"},
        pictures={"predictions", "confusion"},
        changes=[
            {"model": "syncbnnet2plus1d"},
            {"model": "single_frame"},
            {"model": "r3d_18"},
            {"clip_frames": 6},
            {"frame_stride": 1},
            {"fps": 4.0},
            {"crop_size": [24, 28], "short_side": [28, 28], "eval_short_side": 28},
            {"short_side": [28, 32]},
            {"crop_area": [0.5, 0.6]},
            {"hflip": 1.0},
            {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
            {"label_smoothing": 0.2},
        ],
        same=[{"num_workers": 2}, {"eval_clips": 3}, {"eval_crops": 3}, {"decoder": "pyav"}],
        mistakes=[
            ({"model": "r3d_19"}, "r3d_18"),
            ({"model": "s3d"}, "13 frames"),
            ({"clip_frames": 0}, "clip of 0 frames"),
            ({"crop_size": [64, 64]}, "don't fit"),
            ({"crop_area": [0.5, 2]}, "--crop_area"),
            ({"hflip": 2}, "--hflip"),
            ({"dataset": "ucf101"}, "--data_dir"),
            ({"weights": "default"}, "no published weights"),
        ],
    ),
    "train_classification": Case(
        task="classification",
        metrics={"top1", "top5", "mean_recall", "loss"},
        pictures={"misclassified", "confusion"},
        changes=[
            {"model": "lenet"},
            {"model": "timm/test_resnet"},
            {"crop_area": [0.9, 1.0]},
            {"crop_padding": 4},
            {"hflip": 1.0},
            {"auto_augment": "trivial_augment"},
            {"auto_augment": "rand_augment"},
            {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
            {"erasing": 1.0},
            {"mixup": 1.0},
            {"cutmix": 1.0},
            {"label_smoothing": 0.2},
            {"image_size": [32, 24]},
            {"dataset": "fake"},
        ],
        same=[{"num_workers": 2}, {"crop_ratio": 1.0}, {"pictures": 0}],
        mistakes=[
            ({"model": "resnet19"}, "resnet18"),
            ({"model": "timm/resnet1"}, "timm/resnet18"),
            ({"crop_area": [0.9, 0.1]}, "--crop_area"),
            ({"mixup": -1}, "--mixup"),
            ({"label_smoothing": 2}, "--label_smoothing"),
            ({"image_size": [4, 4]}, "--image_size"),
            ({"dataset": "folder"}, "--data_dir"),
            ({"weights": "backbone"}, "--weights"),
        ],
    ),
}


@pytest.fixture(scope="module")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each script that the others differ from by one option."""
    folder = tmp_path_factory.mktemp("baselines")
    return {script: train_here(script, folder / script) for script in CASES}


def each(name: str) -> pytest.MarkDecorator:
    """Every script with every entry of a field of its case."""
    pairs = [(script, entry) for script, case in CASES.items() for entry in getattr(case, name)]
    return pytest.mark.parametrize("script, entry", pairs, ids=str)


@pytest.mark.parametrize("script", CASES)
def test_files_metrics_and_tensorboard(baselines, script) -> None:
    case, run = CASES[script], baselines[script]
    assert run.status == 0
    assert run.summary["task"] == case.task and run.summary["steps"] == 2
    assert set(run.evals[-1]) >= case.metrics
    assert all(np.isfinite(list(run.evals[-1].values())))
    assert set(run.steps[-1]) >= {"loss", "lr", "grad_norm", *case.scalars}
    drawn = {path.stem for path in run.path.glob("*.png")}
    assert drawn >= case.pictures
    (events,) = run.path.rglob("events.out.tfevents*")
    tags = EventAccumulator(str(events.parent)).Reload().Tags()
    assert {f"val/{name}" for name in drawn} == {*tags["images"]}
    assert {f"val/{name}" for name in case.metrics} <= {*tags["scalars"]}


@each("changes")
def test_an_option_changes_the_training(baselines, script, entry, tmp_path: Path) -> None:
    run = train_here(script, tmp_path / "run", **entry)
    assert run.status == 0 and all(np.isfinite(run.losses))
    assert run.losses != baselines[script].losses or not same_weights(run, baselines[script])


@each("same")
def test_an_option_does_not_change_the_training(baselines, script, entry, tmp_path: Path) -> None:
    run = train_here(script, tmp_path / "run", **entry)
    assert run.losses == baselines[script].losses and same_weights(run, baselines[script])


def same_weights(run: Run, other: Run) -> bool:
    mine, theirs = (load_file(r.path / "best.safetensors") for r in (run, other))
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


@each("mistakes")
def test_a_mistake_is_one_sentence(script, entry, tmp_path: Path) -> None:
    options, words = entry
    with pytest.raises(UserError) as caught:
        train_here(script, tmp_path / "run", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", CASES)
def test_grad_accum_equals_the_doubled_batch(script, tmp_path: Path) -> None:
    # GroupNorm, because the statistics of BatchNorm are those of a forward pass.
    options = {"norm": "group_norm", "double": True, "max_steps": 3, "clip_grad": 0.5}
    whole = train_here(script, tmp_path / "whole", batch_size=4, **options)
    parts = train_here(script, tmp_path / "parts", batch_size=2, grad_accum=2, **options)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9)
    norms = [[line["grad_norm"] for line in run.steps] for run in (parts, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


@pytest.mark.parametrize("script", CASES)
def test_eval_only_repeats_the_evaluation(baselines, script, tmp_path: Path) -> None:
    best = str(baselines[script].path / "best.safetensors")
    run = train_here(script, tmp_path / "run", eval_only=True, weights=best)
    assert run.evals[-1] == pytest.approx(baselines[script].evals[-1], rel=1e-6)


@pytest.mark.parametrize("script", CASES)
def test_check_data_reads_everything(script, tmp_path: Path, capsys) -> None:
    run = train_here(script, tmp_path / "run", check_data=True)
    assert run.status == 0 and not run.path.exists()
    printed = capsys.readouterr().out
    assert "train: 16 samples, 0 bad" in printed and "val: 5 samples, 0 bad" in printed


@pytest.mark.parametrize("pictures", [0, 3])
def test_the_surest_mistakes_are_read_once(monkeypatch, pictures) -> None:
    """Not once per batch, which on a GPU would wait for the device; and not where none is drawn."""
    options = train_classification.Options(image_size=[8, 8], pictures=pictures)
    data = load_classification(limit_train=2, limit_val=2, image_size=(8, 8))
    task = train_classification.Classification(options, data, torch.device("cpu"))
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 6
    batches = [
        {"image": logits[i : i + 8], "label": labels[i : i + 8], "index": torch.arange(i, i + 8)}
        for i in range(0, 40, 8)
    ]
    monkeypatch.setattr(task, "to_device", lambda batch: batch)
    reads, read = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or read(self))
    records = task.evaluate(lambda images: images, batches).records
    assert len(reads) == (pictures > 0)
    sure, guesses = logits.softmax(1).max(1)
    wrong = [i for i in sure.argsort(descending=True).numpy() if guesses[i] != labels[i]]
    assert [int(index) for *_, index in records] == wrong[:pictures]
