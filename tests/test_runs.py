"""What is in a run's folder is not lost, overwritten or continued on other data without a word."""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import optimizer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.decode import SampleError
from data.stream import SampleStream
from engine import evaluation, saving
from engine import report as report_module
from engine.background import BackgroundWriter
from engine.checkpoint import MANIFEST, load_checkpoint, save_state
from engine.command_line import parse
from engine.fingerprint import (
    Sample,
    contents_of,
    differences,
    read_record,
    record_of,
    to_bytes,
    with_contents_of,
)
from engine.report import sort_before_now
from engine.run_folder import RunFolder, make_default_path, read_best, refuse_other_run
from engine.state import on_host
from engine.stop import StopRequest
from errors import UserError
from tasks.classification import task
from tasks.classification.options import ClassificationOptions
from tasks.classification.rows import rows
from tests.conftest import Run, train_here

SCRIPT = "train_classification"
LONG = {"max_steps": 8, "eval_every": 4, "checkpoint_every": 2, "keep_checkpoints": 9}


def picture(path: Path, seed: int = 0, size: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A data folder of two classes, 6 images to train on and 4 to validate on."""
    root = tmp_path / "flowers"
    for number, split in enumerate(("train", "val")):
        for kind in ("rose", "tulip"):
            for image in range(3 - number):
                picture(root / split / kind / f"{image}.png", seed=len(kind) * 10 + image)
    return root


def on(flowers: Path, path: Path, **options: object) -> Run:
    folder = {"dataset": "folder", "data_dir": str(flowers)}
    # limit_train and limit_val of the tiny runs would leave nothing out here.
    return train_here(SCRIPT, path, **folder | LONG | options)


def files(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


# The folder


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "best.safetensors", "checkpoints", "predictions.png"]
)
def test_a_folder_with_any_file_of_a_run_is_somebody_s(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"holds another run \({name}\)"):
        refuse_other_run(tmp_path)
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(tmp_path, resume=False)


def test_the_weights_that_a_run_begins_with_are_not_replaced(train: Callable[..., Run]) -> None:
    first = train("run")
    before = files(first.path)
    with pytest.raises(UserError, match="holds another run"):
        train("run", weights=str(first.path / "best.safetensors"))
    assert files(first.path) == before


def test_runs_of_one_second_get_a_folder_each(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    options = ClassificationOptions()
    paths = [make_default_path("classification", options) for _ in range(3)]
    assert len(set(paths)) == 3 and all(path.is_dir() for path in paths)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"\.lock is a link"):
        RunFolder(tmp_path / "run", resume=True)
    assert (tmp_path / "precious").read_text() == "mine"


def test_strange_lines_of_the_metrics_are_kept_aside(tmp_path: Path, capsys) -> None:
    good = json.dumps({"step": 1, "loss": 1.0}).encode()
    strange = [b"3", b"[1]", b"\xff\x00", b'{"step": "one"}', b'{"loss": 1}', b"null"]
    content = b"\n".join([good, *strange, good, b'{"step": 2, "lo'])
    (tmp_path / "metrics.jsonl").write_bytes(content)
    RunFolder(tmp_path, resume=True).start_metrics(5, 5)
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == [good, good]
    assert (tmp_path / "metrics.jsonl.before").read_bytes() == content
    assert "line 2, 3, 4, 5, 6 and others can't be read" in capsys.readouterr().out


# Resuming


def test_lost_checkpoints_are_not_begun_anew(train: Callable[..., Run]) -> None:
    run = train("run", **LONG)
    for path in sorted((run.path / "checkpoints").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (run.path / "checkpoints").rmdir()
    before = files(run.path)
    for _ in range(2):  # the marker alone is enough
        with pytest.raises(UserError, match="but no checkpoint to continue it from"):
            train("run", **LONG, resume="auto")
        assert files(run.path) == before
        (run.path / "best.safetensors").unlink(missing_ok=True)
        (run.path / "summary.json").unlink(missing_ok=True)
        before = files(run.path)


def test_a_finished_run_keeps_its_summary(train: Callable[..., Run], capsys) -> None:
    run = train("run", **LONG)
    before = run.summary
    assert before["images_per_second"] > 0
    assert train("run", **LONG, resume="auto").summary == before
    assert "already finished, after 8 steps" in capsys.readouterr().out


def test_a_step_looks_for_no_package(train: Callable[..., Run], monkeypatch) -> None:
    monkeypatch.setattr(optimizer, "is_lomo_available", lambda: pytest.fail("Accelerate's wrapper"))
    assert len(train("run", **LONG).steps) == 8


def test_a_run_that_waited_for_data_says_so(train: Callable[..., Run], monkeypatch, capsys) -> None:
    train("quick", **LONG)
    assert "waiting for data" not in capsys.readouterr().out
    monkeypatch.setattr(report_module, "MUCH_WAITING", 0.0)
    monkeypatch.setattr(report_module, "LONG_WAITING", 0.0)
    train("slow", **LONG)
    assert "of training went into waiting for data: give more" in capsys.readouterr().out


def test_the_times_are_those_of_all_parts(train: Callable[..., Run]) -> None:
    first = train("run", **LONG | {"max_steps": 4})
    state = load_checkpoint(first.path / "checkpoints" / "step_00000004").state
    assert state["seconds"] > state["training_seconds"] > 0
    # As if that part had taken an hour.
    edit_state(
        first.path / "checkpoints" / "step_00000004", seconds=3600.0, training_seconds=1800.0
    )
    summary = train("run", **LONG, resume="auto").summary
    assert 3600 < summary["seconds"] < 3700
    assert summary["images_per_second"] == pytest.approx(16 / 1800, rel=0.2)


def edit_state(path: Path, **values: object) -> None:
    """Change state.json and the manifest's digest of it."""
    state = json.loads((path / "state.json").read_text()) | values
    content = json.dumps(state).encode()
    (path / "state.json").write_bytes(content)
    manifest = json.loads((path / MANIFEST).read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["state.json"] = {"bytes": len(content), "sha256": digest}
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "values",
    [
        {"best": [1]},
        {"best": {"top1": "high"}},
        {"metrics": None},
        {"options": []},
        {"identity": 3},
        {"evaluated_step": "4"},
        {"seconds": "long"},
        {"data_changed": 3},
    ],
    ids=str,
)
def test_a_state_of_wrong_values_is_one_sentence(finished: Run, values: dict, tmp_path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    edit_state(path / "checkpoints" / "step_00000008", **values)
    with pytest.raises(UserError) as caught:
        train_here(SCRIPT, path, **LONG, resume="auto")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_here(SCRIPT, tmp_path_factory.mktemp("finished") / "run", **LONG)


def test_the_best_weights_say_whose_they_are(finished: Run, tmp_path: Path) -> None:
    best = finished.summary["metrics"]["best"]
    assert read_best(finished.path / "best.safetensors") == best
    # Killed after the weights were written and before the checkpoint was.
    path = shutil.copytree(finished.path, tmp_path / "run")
    edit_state(path / "checkpoints" / "step_00000008", best={"step": 1, "top1": -1.0})
    again = train_here(SCRIPT, path, **LONG | {"max_steps": 10}, resume="auto")
    stated = again.summary["metrics"]["best"]
    assert read_best(path / "best.safetensors") == stated
    assert stated["top1"] >= best["top1"]


def test_a_bad_validation_file_leaves_a_checkpoint(flowers: Path, tmp_path: Path) -> None:
    (flowers / "val" / "rose" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"rose/0\.png"):
        on(flowers, tmp_path / "run", checkpoint_every=8)
    assert Run(tmp_path / "run", 0).checkpoints == ["step_00000004"]
    picture(flowers / "val" / "rose" / "0.png", seed=40)
    with pytest.raises(UserError, match=r"val: of another size: val/rose/0\.png"):
        on(flowers, tmp_path / "run", resume="auto")
    run = on(flowers, tmp_path / "run", resume="auto", allow_changed_data=True)
    assert [line["step"] for line in run.steps] == list(range(1, 9))
    assert run.summary["data_changed_after_steps"] == [4]


@pytest.mark.parametrize("accum", [1, 2])
def test_a_bad_training_file_leaves_a_checkpoint_of_the_step_before(
    flowers: Path, tmp_path: Path, accum: int
) -> None:
    (flowers / "train" / "tulip" / "2.png").write_bytes(b"no picture")
    # The order of seed 0 begins with other images.
    options = {"batch_size": 1, "grad_accum": accum, "limit_train": 0, "eval_every": 100}
    with pytest.raises(UserError, match=r"tulip/2\.png"):
        on(flowers, tmp_path / "run", **options | {"checkpoint_every": 100})
    run = Run(tmp_path / "run", 0)
    first = [key.index for key in map(SampleStream(6, 0).__getitem__, range(6))].index(5) // accum
    assert first > 0 and run.checkpoints == [f"step_{first:08d}"]
    assert [line["step"] for line in run.steps] == list(range(1, first + 1))


def test_a_file_that_goes_bad_under_precise_bn_leaves_a_checkpoint(
    flowers: Path, tmp_path: Path, monkeypatch
) -> None:
    loader = evaluation.precise_loader

    class GoesBad:
        def __init__(self, *args: object) -> None:
            self.loader, self.rounds = loader(*args), 0

        def __iter__(self) -> Iterator:
            self.rounds += 1
            yield next(iter(self.loader))
            if self.rounds == 2:
                raise SampleError("x.png is no picture")
            yield next(iter(self.loader))

    monkeypatch.setattr(evaluation, "precise_loader", GoesBad)
    with pytest.raises(UserError, match="no picture"):
        on(flowers, tmp_path / "run", precise_bn=2, max_steps=12, checkpoint_every=12)
    # Of the first evaluation and of the one that failed.
    assert Run(tmp_path / "run", 0).checkpoints == ["step_00000004", "step_00000008"]
    monkeypatch.undo()
    run = on(flowers, tmp_path / "run", precise_bn=2, max_steps=12, resume="auto")
    assert len(run.evals) == 3


def test_an_unevaluated_checkpoint_is_continued_in_a_new_folder(
    flowers: Path, tmp_path: Path
) -> None:
    bad = flowers / "val" / "rose" / "0.png"
    good = bad.read_bytes()
    bad.write_bytes(b"no picture".ljust(len(good)))
    with pytest.raises(UserError, match=r"rose/0\.png"):
        on(flowers, tmp_path / "run", checkpoint_every=8)
    begun = str(tmp_path / "run" / "checkpoints" / "step_00000004")
    # The evaluation that is made up for fails too: the new folder can be continued by itself.
    with pytest.raises(UserError, match=r"rose/0\.png"):
        on(flowers, tmp_path / "new", checkpoint_every=8, resume=begun)
    assert Run(tmp_path / "new", 0).checkpoints == ["step_00000004"]
    bad.write_bytes(good)
    for name, resume in {"new": "auto", "newer": begun}.items():
        run = on(flowers, tmp_path / name, checkpoint_every=8, resume=resume)
        assert len(run.evals) == 2 and run.checkpoints == ["step_00000004", "step_00000008"]
        state = load_checkpoint(tmp_path / name / "checkpoints" / "step_00000004").state
        assert state["evaluated_step"] == 4 and state["best"]["step"] == 4


def test_a_state_without_its_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step_00000003 could not be written"):
        save_state(tmp_path, {"step": 3})
    assert not list(tmp_path.iterdir())


# Other data


def change_rename(root: Path) -> None:
    (root / "train/rose/0.png").rename(root / "train/rose/9.png")


def change_move(root: Path) -> None:
    (root / "train/rose/0.png").rename(root / "train/tulip/0b.png")


def change_replace(root: Path) -> None:
    picture(root / "train/tulip/1.png", seed=5, size=20)


def change_validation(root: Path) -> None:
    picture(root / "val/tulip/5.png", seed=6)


@pytest.mark.parametrize(
    "change, words",
    [
        (change_rename, ["train: gone: train/rose/0.png", "train: new: train/rose/9.png"]),
        (change_move, ["gone: train/rose/0.png", "new: train/tulip/0b.png"]),
        (change_replace, ["train: of another size: train/tulip/1.png"]),
        (change_validation, ["val: new: val/tulip/5.png"]),
    ],
)
def test_other_data_are_refused_by_name(flowers, tmp_path, change, words, capsys) -> None:
    run = on(flowers, tmp_path / "run", max_steps=4)
    before = files(run.path)
    change(flowers)
    with pytest.raises(UserError) as caught:
        on(flowers, run.path, resume="auto")
    assert all(part in str(caught.value) for part in [*words, "--allow_changed_data"])
    assert files(run.path) == before
    run = on(flowers, run.path, resume="auto", allow_changed_data=True)
    out = capsys.readouterr().out
    assert "From step 4 on it is the data of now." in out and words[0] in out
    aside = (run.path / "best_before_step_4.safetensors").exists()
    assert aside == (change is change_validation)
    assert len(run.evals) == 2
    # The new data are now the run's.
    on(flowers, run.path, resume="auto", max_steps=10)


def test_weights_are_scored_on_what_their_training_held_out(flowers, tmp_path, capsys) -> None:
    shutil.rmtree(flowers / "val")
    for kind, number in (("rose", 10), ("rose", 11), ("tulip", 12), ("tulip", 13)):
        picture(flowers / "train" / kind / f"{number}.png", seed=number)
    run = on(flowers, tmp_path / "run", fold="2/3")
    words = ["--eval_only", f"--weights={run.path}", "--dataset=folder", f"--data_dir={flowers}"]
    assert parse(ClassificationOptions, "", words).fold == "2/3"
    assert "--fold 2/3" in capsys.readouterr().out
    said = parse(ClassificationOptions, "", [*words, "--val_share", "0.5"])
    assert said.fold is None and said.val_share == 0.5
    for name in ("fold", "val_share"):  # the data's own split
        whole = parse(ClassificationOptions, "", [*words, f"--{name}", "null"])
        assert whole.fold is None and whole.val_share is None
    assert parse(ClassificationOptions, "", words[1:]).fold is None  # another training
    assert parse(ClassificationOptions, "", words[:2]).fold is None  # other data


def test_only_what_an_evaluation_needs_must_be_as_in_training(finished, tmp_path) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")
    evaluated = LONG | {"eval_only": True, "resume": "auto", "limit_val": 7, "batch_size": 3}
    train_here(SCRIPT, path, **evaluated)
    assert (path / "evaluation.json").exists()
    with pytest.raises(UserError, match=r"--model .* -> lenet"):
        train_here(SCRIPT, path, **evaluated, model="lenet")


def test_other_options_are_named_before_the_data_that_they_change(finished: Run) -> None:
    with pytest.raises(UserError, match="--limit_train 16 -> 12"):
        train_here(SCRIPT, finished.path, **LONG, limit_train=12, resume="auto")


def test_the_same_data_elsewhere_are_the_same(flowers: Path, tmp_path: Path) -> None:
    run = on(flowers, tmp_path / "run", max_steps=4)
    moved = flowers.rename(tmp_path / "moved")
    assert len(on(moved, run.path, resume="auto").steps) == 8


def test_a_finished_run_is_evaluated_on_other_validation_data(flowers, tmp_path) -> None:
    run = on(flowers, tmp_path / "run")
    change_validation(flowers)
    run = on(flowers, run.path, resume="auto", allow_changed_data=True)
    assert run.summary["metrics"]["best"] == {"step": 8, **run.summary["metrics"]["last"]}
    assert [line["step"] for line in run.lines if "eval" in line] == [4, 8]
    assert read_best(run.path / "best.safetensors") == run.summary["metrics"]["best"]


def test_contents_are_compared_on_request(flowers: Path, tmp_path: Path) -> None:
    run = on(flowers, tmp_path / "run", max_steps=4, compare_contents=True)
    path = flowers / "train/rose/1.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"of other contents: train/rose/1\.png"):
        on(flowers, run.path, resume="auto", compare_contents=True)
    # Not read now, they are still what the run began with.
    on(flowers, run.path, resume="auto", max_steps=6)
    with pytest.raises(UserError, match=r"of other contents: train/rose/1\.png"):
        on(flowers, run.path, resume="auto", compare_contents=True)


def test_contents_that_cannot_be_compared_are_no_secret(flowers, tmp_path, capsys) -> None:
    run = on(flowers, tmp_path / "run", max_steps=4)
    on(flowers, run.path, resume="auto", max_steps=6, compare_contents=True)
    assert "in the files of 10 samples can't be compared" in capsys.readouterr().out
    on(flowers, run.path, resume="auto", max_steps=6, compare_contents=True)
    assert "compared" not in capsys.readouterr().out
    (run.path / "data.tsv").unlink()
    on(flowers, run.path, resume="auto", compare_contents=True)
    assert "can't be compared without the data.tsv" in capsys.readouterr().out


def test_the_processes_share_out_the_files_to_read(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(7)]
    for number, name in enumerate(names):
        picture(Path(name), seed=number)
    split = rows(names, [0] * 7, ["x"])
    whole = contents_of(split, 0, 1)
    assert len(set(whole)) == 7
    assert [digest for part in range(3) for digest in contents_of(split, part, 3)] == whole


def test_what_is_known_of_contents_is_kept_for_what_has_not_changed() -> None:
    before = [Sample("a", "1", "x", "A"), Sample("a", "1", "x", "B"), Sample("b", "2", "x", "C")]
    now = [sample._replace(contents="") for sample in before]
    assert with_contents_of(before, now) == before
    changed = [now[0], now[1], now[2]._replace(size="3"), Sample("c", "1", "x", "")]
    assert with_contents_of(before, changed) == [*before[:2], *changed[2:]]
    read = [sample._replace(contents="new") for sample in before]
    assert with_contents_of(before, read) == read


def test_a_record_tells_labels_and_order(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    before = record_of(rows(names, [0, 1, 0], ["x", "y"]), None)
    labelled = record_of(rows(names, [0, 1, 1], ["x", "y"]), None)
    assert differences(before, labelled) == ["labelled or annotated otherwise: c.png"]
    assert differences(before, before[::-1]) == ["the same samples in another order"]
    assert differences(before, before) == []
    odd = {"train": [before[0]._replace(name='tab\t"quote"\n\r\udce9')], "val": before}
    (tmp_path / "data.tsv").write_bytes(to_bytes(odd))
    assert read_record(tmp_path / "data.tsv") == odd


def test_a_record_tells_nested_annotations() -> None:
    boxes = [[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], []]
    made = [
        datasets.Dataset.from_dict({"objects": [{"bbox": b, "name": ["a"] * len(b)} for b in all_]})
        for all_ in (boxes, boxes, [boxes[0][::-1], []], [boxes[0], [[0.0, 0, 0, 0]]])
    ]
    first, same, swapped, more = (record_of(data, None) for data in made)
    assert first == same
    assert first[0].labels != swapped[0].labels and first[1] == swapped[1]
    assert first[0] == more[0] and first[1].labels != more[1].labels


# TensorBoard


def test_a_clock_set_back_hides_no_step(train: Callable[..., Run]) -> None:
    run = train("run", **LONG | {"max_steps": 4})
    (events,) = (run.path / "tensorboard").iterdir()
    later = int(time.time()) + 86400
    date = events.name.split(".")[3]
    events.rename(events.with_name(events.name.replace(date, str(later))))
    train("run", **LONG, resume="auto")
    read = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(1, 9))


def test_event_files_of_the_past_keep_their_names(tmp_path: Path) -> None:
    for name in ("events.out.tfevents.0000000005.host.1.0", "note.txt"):
        (tmp_path / name).touch()
    sort_before_now(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["events.out.tfevents.0000000005.host.1.0", "note.txt"]


def test_a_removed_tensorboard_folder_is_one_sentence(train, tmp_path, monkeypatch) -> None:
    settle = report_module.Report.evaluation

    def removing(self, *args: object) -> None:
        shutil.rmtree(self.folder.path / "tensorboard")
        settle(self, *args)

    monkeypatch.setattr(report_module.Report, "evaluation", removing)
    errors = io.StringIO()
    with (
        contextlib.redirect_stderr(errors),
        pytest.raises(UserError, match="tensorboard could not"),
    ):
        train("run", **LONG)
    assert "Traceback" not in errors.getvalue()


# Writing in the background


def test_one_piece_of_work_at_a_time_and_errors_at_the_next_step() -> None:
    writer, done, gate = BackgroundWriter(StopRequest()), [], threading.Event()

    def first() -> None:
        gate.wait(10)
        done.append("first")

    def second() -> None:
        done.append("second")
        raise UserError("full")

    writer.start(first)
    writer.check()  # waits for nothing
    assert done == []
    threading.Timer(0.1, gate.set).start()
    writer.start(second)  # after the first
    with pytest.raises(UserError, match="full"):
        writer.join()
    assert done == ["first", "second"]
    writer.join()  # said once


def test_an_evaluation_without_a_number_is_no_best(train, monkeypatch) -> None:
    metrics = task.class_metrics
    monkeypatch.setattr(task, "class_metrics", lambda *a: metrics(*a) | {"top1": math.nan})
    run = train("run", **LONG)
    assert run.summary["metrics"]["best"] == {}
    assert not (run.path / "best.safetensors").exists()


def test_a_full_disk_ends_the_run_at_the_next_step(train, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr(saving, "save_checkpoint", full)
    with pytest.raises(UserError, match="no room"):
        train("run", **LONG)


def test_no_two_copies_are_in_host_memory(train, monkeypatch) -> None:
    save, writing = saving.save_checkpoint, []

    def slowly(*args: object) -> None:
        time.sleep(0.5)
        save(*args)

    def copy(value: object) -> object:
        writing.append(any(thread.name == "writer" for thread in threading.enumerate()))
        return on_host(value)

    monkeypatch.setattr(saving, "save_checkpoint", slowly)
    monkeypatch.setattr(saving, "on_host", copy)
    train("run", **LONG)
    assert writing == [False, False]


def test_a_copy_in_host_memory_shares_nothing() -> None:
    tied = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    copy = on_host({"a": tied, "b": [tied, 3, None]})
    assert copy["b"][1:] == [3, None]
    assert copy["a"].is_contiguous(memory_format=torch.channels_last)
    tied.zero_()
    assert copy["a"].sum() == copy["b"][0].sum() == 96
    copy["a"].zero_()
    assert copy["b"][0].sum() == 96
