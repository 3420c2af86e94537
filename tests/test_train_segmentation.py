"""train_segmentation.py in this process: what every option does, and which mistakes are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from engine.command_line import parse
from engine.trainer import Trainer
from errors import UserError
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.task import Segmentation
from tests.conftest import Run, train_here

SCRIPT = "train_segmentation"


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that the others differ from by one option."""
    return train_here(SCRIPT, tmp_path_factory.mktemp("baseline") / "run")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "best.safetensors")


# Files


def test_files_of_a_run(baseline: Run) -> None:
    assert baseline.status == 0
    assert {path.name for path in baseline.path.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "best.safetensors",
        "tensorboard",
        "predictions.png",
    }
    assert [line["step"] for line in baseline.steps] == [1, 2]
    assert [line["samples"] for line in baseline.steps] == [2, 4]
    summary = baseline.summary
    expected = {
        "task": "segmentation",
        "model": "unet",
        "dataset": "synthetic",
        "world_size": 1,
        "device": "cpu",
        "global_batch_size": 2,
        "steps": 2,
    }
    assert summary.items() >= expected.items()
    assert summary["norm"]["kind"] == "bn" and summary["norm"]["reason"]
    assert summary["metrics"]["last"] == baseline.evals[-1]
    assert summary["seconds"] > 0 and summary["peak_memory_bytes"] > 1e6
    assert 0 <= summary["data_wait_fraction"] <= 1 and summary["images_per_second"] > 0


def test_tensorboard_has_scalars_figures_and_options(baseline: Run) -> None:
    (events,) = baseline.path.rglob("events.out.tfevents*")
    log = EventAccumulator(str(events.parent)).Reload()
    tags = log.Tags()
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second"} <= {
        *tags["scalars"]
    }
    assert {"train/data_wait_fraction", "train/memory_bytes", "val/miou"} <= {*tags["scalars"]}
    assert any(tag.startswith("val/iou/") for tag in tags["scalars"])
    assert tags["images"] == ["val/predictions"]
    losses = [event.value for event in log.Scalars("train/loss")]
    assert losses == pytest.approx(baseline.losses, rel=1e-6)
    assert "_hparams_/session_start_info" in log.summary_metadata
    assert b"val/miou" in log.summary_metadata["_hparams_/experiment"].plugin_data.content


def test_config_yaml_repeats_the_run(train, baseline: Run, tmp_path: Path) -> None:
    config = str(baseline.path / "config.yaml")
    output = str(tmp_path / "again")
    options = parse(SegmentationOptions, "", ["--config", config, "--output_dir", output])
    again = train("again", **{**vars(options), "output_dir": output})
    assert again.losses == baseline.losses and again.evals == baseline.evals


# One option at a time


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"lr": 0.5},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.0},
        {"schedule": "constant"},
        {"schedule": "poly"},
        {"schedule": "one_cycle"},
        {"warmup_steps": 3},
        {"weight_decay": 0.9},
        {"decay_norm_and_bias": True},
        {"ema": 0.0},
        {"norm": "group_norm"},
        {"norm": "frozen_bn"},
        {"backbone": "syncbnnet_s"},
        {"model": "deeplabv3plus"},
        {"aux_loss": 0.4},
        {"loss": "ce_dice"},
        {"class_weights": [0.1, 1, 1, 1, 1, 1, 9]},
        {"class_weights": "median_frequency"},
        {"scale_range": [1.5, 1.6]},
        {"color_jitter": [0, 0, 0, 0]},
        {"hflip": 1.0},
        {"crop_size": [48, 32]},
        {"precise_bn": 2},
        {"double": True},
        {"scale_lr": 1},
        {"grad_accum": 2},
        {"limit_train": 7},
        {"image_size": [40, 40]},
    ],
    ids=str,
)
def test_an_option_changes_the_training(train, baseline: Run, options: dict) -> None:
    run = train(**options)
    assert run.status == 0
    assert all(np.isfinite(run.losses))
    mine, other = weights(run), weights(baseline)
    assert mine.keys() != other.keys() or any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(mine.values(), other.values(), strict=True)
    )


def test_clipping_bounds_the_step(train, monkeypatch) -> None:
    norms = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *args: object) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    free = train("free", optimizer="sgd", lr=1e-3)
    assert norms == pytest.approx([line["grad_norm"] for line in free.steps], rel=1e-5)
    assert min(norms) > 0.01
    norms.clear()
    clipped = train("clipped", optimizer="sgd", lr=1e-3, clip_grad=0.01)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert clipped.steps[0]["grad_norm"] == free.steps[0]["grad_norm"]


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 1},
        {"num_workers": 3},
        {"log_every": 2},
        {"checkpoint_every": 1},
        {"cpu": True},
    ],
    ids=str,
)
def test_an_option_does_not_change_the_training(train, baseline: Run, options: dict) -> None:
    mine, other = weights(train(**options)), weights(baseline)
    assert all(torch.equal(mine[key], other[key]) for key in other)


@pytest.mark.parametrize("options", [{"compile": True}, {"channels_last": False}], ids=str)
def test_an_option_changes_rounding_only(train, baseline: Run, options: dict) -> None:
    run = train(**options)
    assert run.losses == pytest.approx(baseline.losses, rel=1e-4)
    assert run.evals[-1] == pytest.approx(baseline.evals[-1], rel=1e-2, abs=1e-3)


def test_norm_and_decay_options_reach_the_model(train, monkeypatch) -> None:
    seen = {}

    def spy(self: Trainer) -> int:
        seen["model"], seen["groups"] = self.state.model, self.state.optimizer.param_groups
        return 0

    monkeypatch.setattr(Trainer, "fit", spy)
    for norm, kind in {"group_norm": nn.GroupNorm, "bn": nn.BatchNorm2d}.items():
        train(norm, norm=norm)
        assert any(isinstance(module, kind) for module in seen["model"].modules())
    train("decay", weight_decay=0.25)
    assert sorted(group["weight_decay"] for group in seen["groups"]) == [0.0, 0.25]


def test_grad_accum_equals_the_doubled_batch_with_group_norm(train) -> None:
    options = {"norm": "group_norm", "double": True, "max_steps": 4}
    whole = train("whole", batch_size=4, **options)
    parts = train("parts", batch_size=2, grad_accum=2, **options)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-12)
    assert parts.evals[-1] == pytest.approx(whole.evals[-1], rel=1e-9)
    assert [line["samples"] for line in parts.steps] == [4, 8, 12, 16]


def test_intervals(train) -> None:
    run = train(max_steps=9, eval_every=4, checkpoint_every=2, keep_checkpoints=3, log_every=3)
    assert [line["step"] for line in run.steps] == [3, 6, 9]
    assert [line["step"] for line in run.lines if "eval" in line] == [4, 8, 9]
    assert run.checkpoints == ["step_00000006", "step_00000008", "step_00000009"]
    by_epoch = train("epochs", max_steps=0, epochs=2, limit_train=10)
    assert [line["step"] for line in by_epoch.lines if "eval" in line] == [5, 10]


def test_profile_writes_a_trace(train) -> None:
    run = train(max_steps=6, profile=True)
    assert list((run.path / "profile").glob("*.json*"))


def test_eval_size_scores_at_the_label_s_resolution(train, monkeypatch) -> None:
    seen = []
    evaluate = Segmentation.evaluate

    def spy(self, model, batches):
        kept = [[dict(group) for group in groups] for groups in batches]
        seen.extend(group for groups in kept for group in groups)
        tally = evaluate(self, model, iter(kept))
        assert tally.sums["confusion"].sum() == sum((group["mask"] != 255).sum() for group in seen)
        return tally

    monkeypatch.setattr(Segmentation, "evaluate", spy)
    train(eval_size=[64, 48], max_steps=1)
    assert {tuple(group["image"].shape[-2:]) for group in seen} == {(64, 48)}
    assert {tuple(group["mask"].shape[-2:]) for group in seen} == {(32, 32)}


def make_folder(root: Path, val: int) -> str:
    """A data set whose masks hold the class 1, and one value in validation."""
    for split, value in (("train", 1), ("val", val)):
        for kind, brightness in (("images", 90), ("masks", value)):
            (root / split / kind).mkdir(parents=True)
            for name in "ab":
                pixels = np.full((32, 32), brightness, np.uint8)
                Image.fromarray(pixels).save(root / split / kind / f"{name}.png")
    return str(root)


def test_a_head_for_as_many_other_classes_is_kept_with_a_note(
    train, baseline: Run, tmp_path, capsys
) -> None:
    folder, names = make_folder(tmp_path / "data", val=1), [f"kind {n}" for n in range(7)]
    data = {"dataset": "folder", "data_dir": folder, "class_names": names}
    given = {"weights": str(baseline.path), "max_steps": 1}
    train("other", **given, **data)
    note = "(first kind 0 instead of background): its head, which has the same shape, is kept"
    assert note in capsys.readouterr().out
    train("same", **given)
    assert "its head" not in capsys.readouterr().out


def test_masks_without_a_pixel_to_score_end_the_run_which_is_saved(train, tmp_path) -> None:
    folder = make_folder(tmp_path / "data", val=255)
    with pytest.raises(UserError, match="Every pixel of the scored masks is ignored"):
        train(dataset="folder", data_dir=folder, max_steps=2)
    assert list(tmp_path.rglob("checkpoints/step_00000001"))


def test_eval_only_scores_given_weights(train, baseline: Run) -> None:
    best = str(baseline.path / "best.safetensors")
    run = train(eval_only=True, weights=best, ema=0.0)
    assert run.evals == [pytest.approx(baseline.evals[-1])]
    assert run.steps == [] and not (run.path / "best.safetensors").exists()
    assert weights(baseline).keys() == {key.replace("module.", "") for key in weights(baseline)}


def test_eval_only_of_a_run_leaves_its_files(train) -> None:
    run = train("run", max_steps=3, checkpoint_every=1)
    before = {
        name: (run.path / name).read_bytes()
        for name in ("config.yaml", "summary.json", "best.safetensors")
    }
    evaluated = run.evals
    again = train("run", max_steps=3, eval_only=True, resume="auto")
    assert again.evals == evaluated * 2
    assert [line["step"] for line in again.steps] == [1, 2, 3]
    assert before == {name: (run.path / name).read_bytes() for name in before}
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    assert evaluation["metrics"]["last"] == evaluated[-1]


def test_figures_can_be_left_out(train) -> None:
    assert not (train(pictures=0).path / "predictions.png").exists()


def test_resume_extends_a_finished_run(train) -> None:
    whole = train("whole", max_steps=6, schedule="constant", eval_every=6)
    part = train("part", max_steps=3, schedule="constant", eval_every=6)
    assert len(part.steps) == 3
    part = train("part", max_steps=6, schedule="constant", eval_every=6, resume="auto")
    assert part.losses == whole.losses
    assert part.evals[-1] == whole.evals[-1]


def test_resume_from_a_given_checkpoint(train) -> None:
    whole = train("whole", max_steps=4, checkpoint_every=1, keep_checkpoints=9)
    part = train("part", max_steps=4, resume=str(whole.path / "checkpoints" / "step_00000002"))
    assert part.losses == whole.losses[2:]


def test_a_checkpoint_of_another_run_is_not_continued_in_a_run_s_folder(train) -> None:
    one = train("one", max_steps=2, checkpoint_every=1)
    two = train("two", max_steps=3, checkpoint_every=1)
    before = {path: path.read_bytes() for path in two.path.rglob("*") if path.is_file()}
    checkpoint = str(one.path / "checkpoints" / "step_00000001")
    with pytest.raises(UserError, match="holds another run"):
        train("two", max_steps=3, resume=checkpoint)
    assert before == {path: path.read_bytes() for path in two.path.rglob("*") if path.is_file()}


def test_tensorboard_shows_one_curve_after_going_back(train) -> None:
    options = {"max_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 9, "eval_every": 4}
    run = train("run", **options)
    before = run.losses
    checkpoint = str(run.path / "checkpoints" / "step_00000002")
    again = train("run", resume=checkpoint, **options)
    assert again.losses == before and [line["step"] for line in again.steps] == [1, 2, 3, 4]
    log = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2, 3, 4]


# Mistakes


@pytest.mark.parametrize(
    "options",
    [
        {"hflip": 1.5},
        {"pictures": -1},
        {"aux_loss": -1.0},
        {"image_size": [0, 0]},
        {"eval_size": [8, 8]},
        {"color_jitter": [0, 0, 0, 2]},
        {"scale_range": [2, 1]},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"--{name}"):
        SegmentationOptions(**options).check()


def fails(train, part: str, **options: object) -> str:
    """The run fails with one sentence that contains ``part``."""
    with pytest.raises(UserError) as error:
        train(**options)
    message = str(error.value)
    assert part in message, message
    assert "\n" not in message and message.endswith((".", "?"))
    return message


@pytest.mark.parametrize(
    "part, options",
    [
        ("unet", {"model": "unett"}),
        ("timm/resnet18", {"backbone": "timm/resnet81"}),
        ("synthetic", {"dataset": "syntetic"}),
        ("--data_dir", {"dataset": "camvid"}),
        ("missing", {"dataset": "camvid", "data_dir": "missing"}),
        ("missing.safetensors", {"weights": "missing.safetensors"}),
        ("--weights or --resume", {"eval_only": True}),
        ("A BatchNorm layer", {"model": "deeplabv3_mobilenet_v3_large", "batch_size": 1}),
        ("--precise_bn", {"precise_bn": 2, "norm": "group_norm"}),
        ("own", {"sync_bn_impl": "torch"}),
        ("2 weights for 7 classes", {"class_weights": [1, 2]}),
        ("--output_dir", {"resume": "auto", "output_dir": None}),
        ("missing", {"resume": "missing"}),
        ("no run in", {"eval_only": True, "resume": "auto"}),
        ("batch", {"global_batch_size": 5, "grad_accum": 2}),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(train, part: str, options: dict) -> None:
    fails(train, part, **options)


def test_an_output_folder_of_another_run_is_refused(train, baseline: Run) -> None:
    before = (baseline.path / "metrics.jsonl").read_bytes()
    fails(train, "--resume auto", output_dir=str(baseline.path))
    assert (baseline.path / "metrics.jsonl").read_bytes() == before


def test_resuming_with_other_options_names_them(train) -> None:
    train("run")
    message = fails(
        lambda **options: train("run", **options),
        "--model",
        model="deeplabv3plus",
        lr=0.5,
        batch_size=3,
        resume="auto",
    )
    assert "unet -> deeplabv3plus" in message and "--lr" in message
    assert "global_batch_size 2 -> 3" in message


def test_a_loss_that_is_not_finite_names_step_and_samples(train) -> None:
    message = fails(train, "not finite at step", lr=1e30, max_steps=9, warmup_steps=0)
    assert "ce nan" in message and "synthetic/train/image" in message and "--clip_grad" in message


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of images and id masks, 4 for training and 2 for validation."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 4, "val": 2}.items():
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            mask = rng.integers(0, 3, (40, 48), dtype=np.uint8)
            folder = tmp_path / "data" / split
            Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path / "data"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FAULTS = {
    "corrupt JPEG": lambda folder: (folder / "images" / "1.jpg").write_bytes(b"no picture"),
    "truncated PNG": lambda folder: truncate(folder / "masks" / "1.png"),
    "other size": lambda folder: Image.new("L", (9, 9)).save(folder / "masks" / "1.png"),
    "class out of range": lambda folder: Image.new("L", (48, 40), 7).save(
        folder / "masks" / "1.png"
    ),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_bad_file_is_named_while_training(train, pairs, split, fault, workers) -> None:
    FAULTS[fault](pairs / split)
    message = fails(
        train, str(pairs / split), dataset="folder", data_dir=str(pairs), num_workers=workers
    )
    assert "1.jpg" in message or "1.png" in message


def test_check_data_lists_what_is_bad(train, pairs, capsys) -> None:
    options = {"dataset": "folder", "data_dir": str(pairs), "check_data": True}
    assert train("good", **options).status == 0
    assert "road" in capsys.readouterr().out
    FAULTS["corrupt JPEG"](pairs / "train")
    FAULTS["class out of range"](pairs / "val")
    run = train("bad", **options)
    out = capsys.readouterr().out
    assert run.status == 1 and not run.path.exists()
    assert "train/images/1.jpg" in out and "val/masks/1.png" in out


def test_folders_train(train, pairs) -> None:
    run = train(dataset="folder", data_dir=str(pairs))
    assert "iou/road" in run.evals[-1]
    assert json.loads((run.path / "summary.json").read_text())["dataset"] == "folder"


def test_evaluating_weights_that_leave_something_at_random_is_refused(train, baseline: Run) -> None:
    best = str(baseline.path / "best.safetensors")
    fails(train, "nothing to evaluate", eval_only=True, weights=best, aux_loss=0.4)
    fails(train, "nothing to evaluate", eval_only=True, weights=best, model="deeplabv3plus")


def test_resuming_from_a_run_s_folder_names_its_checkpoint(train, baseline: Run) -> None:
    fails(train, "step_00000002", resume=str(baseline.path))


@pytest.mark.parametrize(
    "content", [b"abc", b"these are not weights", {1: torch.zeros(2)}], ids=str
)
def test_a_file_that_holds_no_weights_is_refused(train, tmp_path: Path, content) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    fails(train, "weights.pth", weights=str(path))


def test_a_gradient_that_is_not_finite_is_not_saved(train, monkeypatch) -> None:
    norm = torch.nn.utils.get_total_norm

    def overflow(gradients):
        gradients[0][:] = torch.inf
        return norm(gradients)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", overflow)
    fails(train, "The gradient is not finite at step 2", log_every=9)


def test_masks_of_0_and_255(train, pairs) -> None:
    for path in pairs.rglob("masks/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    (pairs / "classes.txt").unlink()
    options = {"dataset": "folder", "data_dir": str(pairs)}
    fails(train, "background 0 0 0", **options)
    (pairs / "classes.txt").write_text("background 0 0 0\nobject 255 255 255\n")
    assert train(**options).evals[-1].keys() >= {"iou/background", "iou/object"}


def test_an_empty_folder_is_refused(train, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(train, "empty", dataset="folder", data_dir=str(tmp_path / "empty"))


def test_a_checkpoint_of_another_program_is_refused(train, tmp_path: Path) -> None:
    from engine.checkpoint import Checkpoint, save_checkpoint

    foreign = Checkpoint({"weight": torch.zeros(1)}, None, {"optimizer": {}}, {"step": 3})
    save_checkpoint(tmp_path / "checkpoints", foreign, keep=1)
    (path,) = (tmp_path / "checkpoints").iterdir()
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        train(resume=str(path))
