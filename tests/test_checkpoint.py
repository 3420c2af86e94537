"""Checkpoints: complete or absent, verified, free of code; and who may write a folder."""

import errno
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from engine import checkpoint as module
from engine.checkpoint import (
    Checkpoint,
    complete_checkpoints,
    load_checkpoint,
    newest_good_checkpoint,
    recover,
    save_checkpoint,
    save_state,
)
from engine.options import CommonOptions
from engine.run_folder import RunFolder, write_atomically
from engine.state import Progress, State
from errors import UserError
from tests.conftest import ROOT


def save(folder: Path, step: int, keep: int = 3) -> Path:
    weights = {"a.weight": torch.full((3, 2), float(step)), "n": torch.tensor(step)}
    optimizer = {"optimizer": {"state": {0: {"momentum": torch.ones(2)}}}, "scaler": None}
    state = {"step": step, "best": {"miou": 0.5}}
    return save_checkpoint(folder, Checkpoint(weights, weights, optimizer, state), keep)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path, 7))
    assert loaded.state == {"step": 7, "best": {"miou": 0.5}}
    assert torch.equal(loaded.model["a.weight"], torch.full((3, 2), 7.0))
    assert torch.equal(loaded.ema["n"], torch.tensor(7))
    assert torch.equal(loaded.optimizer["optimizer"]["state"][0]["momentum"], torch.ones(2))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 20, 1000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == [
        "step_00000020",
        "step_00001000",
    ]


def test_pruning_leaves_what_was_just_written(tmp_path: Path) -> None:
    """A damaged or abandoned checkpoint of a later step doesn't push out the good one."""
    save(tmp_path, 800, keep=1)
    later = save(tmp_path, 900, keep=2)
    (later / "state.json").unlink()
    save(tmp_path, 850, keep=1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000850"]
    assert newest_good_checkpoint(tmp_path)[0] == tmp_path / "step_00000850"


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    before = save(tmp_path, 3)
    content = (before / "state.json").read_bytes()
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
    assert (before / "state.json").read_bytes() == content


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("fault", ["truncate", "tamper", "remove"])
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, name: str, fault: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    file = bad / name
    content = file.read_bytes()
    if fault == "remove":
        file.unlink()
    elif fault == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    newest, skipped = newest_good_checkpoint(tmp_path)
    assert newest == good
    assert len(skipped) == 1 and str(bad) in skipped[0] and name in skipped[0]
    with pytest.raises(UserError, match=name):
        load_checkpoint(bad)


def test_a_full_disk_leaves_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    written = []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(content)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(UserError, match=r"No space left.*are intact"):
        save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    load_checkpoint(tmp_path / "step_00000001")


@pytest.mark.parametrize("at, replaces", [(0, False), (1, False), (2, False), (1, True), (2, True)])
def test_a_kill_while_writing_loses_nothing(tmp_path: Path, at: int, replaces: bool) -> None:
    """SIGKILL before a rename, or before what was replaced or pruned is removed."""
    save(tmp_path, 1)
    if replaces:
        save(tmp_path, 2)
    code = f"""
        import os, shutil, signal, sys; sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from tests import test_checkpoint
        rename, rmtree, left = os.rename, shutil.rmtree, {at}
        def dying(call):
            def wrapped(*args, **kwargs):
                global left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return call(*args, **kwargs)
            return wrapped
        os.rename, shutil.rmtree = dying(rename), dying(rmtree)
        test_checkpoint.save(Path({str(tmp_path)!r}), 2, keep=1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    recover(tmp_path)
    newest, skipped = newest_good_checkpoint(tmp_path)
    assert not skipped
    assert newest.name == ("step_00000002" if replaces or at else "step_00000001")
    assert all(path.name.startswith("step_") for path in tmp_path.iterdir())
    save(tmp_path, 2)  # what was left doesn't stand in the way
    assert newest_good_checkpoint(tmp_path) == (tmp_path / "step_00000002", [])


def test_an_error_while_replacing_keeps_the_old_one(tmp_path: Path, monkeypatch) -> None:
    before = (save(tmp_path, 3) / "manifest.json").read_bytes()
    rename, calls = os.rename, []

    def broken(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", broken)
        with pytest.raises(UserError, match="broken"):
            save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
    assert (tmp_path / "step_00000003" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "manifest", ["{}", "[]", '{"state.json": {}}', "3", "null", "[" * 100_000, '{"state.json": 3}']
)
def test_a_crafted_manifest_is_skipped(tmp_path: Path, manifest: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    (bad / "manifest.json").write_text(manifest)
    newest, skipped = newest_good_checkpoint(tmp_path)
    assert newest == good and len(skipped) == 1 and str(bad) in skipped[0]


def tampered(path: Path, name: str, content: bytes) -> None:
    """Another content of a file, with a manifest that fits."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = module.hashlib.sha256(content).hexdigest()
    manifest[name] = {"bytes": len(content), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


def saved_by_torch(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content",
    [
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", b'{"step": "2"}'),
        ("state.json", b'{"step": -1}'),
        ("state.json", b'{"step": true}'),
        ("state.json", b'{"step": 3}'),  # the folder's name says 2
        ("state.json", b"\xff\xfe"),
        ("state.json", b"[" * 100_000),
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("optimizer.pt", b""),
        ("optimizer.pt", saved_by_torch([1, 2])),
        ("optimizer.pt", saved_by_torch(torch.ones(2))),
    ],
    ids=str,
)
def test_wrong_contents_under_a_fitting_manifest_are_skipped(tmp_path, name, content) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    tampered(bad, name, content)
    newest, skipped = newest_good_checkpoint(tmp_path)
    assert newest == good and len(skipped) == 1 and "\n" not in skipped[0]


@pytest.mark.parametrize("kind", ["pipe", "device", "foreign", "folder"])
def test_a_manifest_reads_no_other_file(tmp_path: Path, kind: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    if kind == "foreign":
        manifest = json.loads((bad / "manifest.json").read_text())
        manifest["/dev/zero"] = {"bytes": 1, "sha256": ""}
        (bad / "manifest.json").write_text(json.dumps(manifest))
    else:
        (bad / "model.safetensors").unlink()
        if kind == "pipe":
            os.mkfifo(bad / "model.safetensors")
        elif kind == "folder":
            (bad / "model.safetensors").mkdir()
        else:
            (bad / "model.safetensors").symlink_to("/dev/zero")
    newest, skipped = newest_good_checkpoint(tmp_path)
    assert newest == good and len(skipped) == 1
    (bad / "manifest.json").unlink()
    os.mkfifo(bad / "manifest.json")
    assert newest_good_checkpoint(tmp_path)[0] == good


def state_of(model: torch.nn.Module) -> State:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return State(model, None, optimizer, None, Progress(step=1))


@pytest.mark.parametrize("fault", ["weights", "shape", "momentum", "group", "none", "progress"])
def test_what_does_not_fit_the_model_is_one_sentence(fault: str) -> None:
    state = state_of(torch.nn.Linear(2, 3))
    checkpoint = state.snapshot(CommonOptions(), {"global_batch_size": 1})
    optimizer = checkpoint.optimizer["optimizer"]
    if fault == "weights":
        del checkpoint.model["bias"]
    elif fault == "shape":
        checkpoint.model["bias"] = torch.ones(4)
    elif fault == "momentum":
        optimizer["state"][0]["momentum_buffer"] = torch.ones(7, 7)
    elif fault == "group":
        optimizer["param_groups"] = []
    elif fault == "none":
        checkpoint.optimizer = {}
    else:
        checkpoint.state["best"] = {"miou": "high"}
    with pytest.raises(UserError, match="doesn't fit this training") as caught:
        state_of(torch.nn.Linear(2, 3)).restore(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_state_is_replaced_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    save_state(tmp_path, {"step": 3, "best": {"miou": 0.7}})
    assert load_checkpoint(path).state == {"step": 3, "best": {"miou": 0.7}}
    assert all(
        (path / name).read_bytes() == content
        for name, content in before.items()
        if name not in ("state.json", "manifest.json")
    )
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000003"]


def test_only_the_run_s_own_names_are_touched(tmp_path: Path) -> None:
    mine = ["step_best", "step_4", "step_00000001.old", "step_000000001", ".step_mine", "other"]
    save(tmp_path, 1)
    for name in mine:
        shutil.copytree(tmp_path / "step_00000001", tmp_path / name)
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    recover(tmp_path)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000003"]
    assert newest_good_checkpoint(tmp_path) == (tmp_path / "step_00000003", [])
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "step_00000003"}
    assert all((tmp_path / name / "manifest.json").exists() for name in mine)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, path = save(tmp_path, 1), save(tmp_path, 2)
    content = pickle.dumps(Bomb())
    (path / "optimizer.pt").write_bytes(content)
    # An attacker writes a fitting manifest too.
    manifest = json.loads((path / "manifest.json").read_text())
    digest = module.hashlib.sha256(content).hexdigest()
    manifest["optimizer.pt"] = {"bytes": len(content), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    newest, skipped = newest_good_checkpoint(tmp_path)
    assert newest == before and len(skipped) == 1
    torch.save(Bomb(), path / "optimizer.pt")
    with pytest.raises(UserError):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=False)
    folder.start_metrics(0, -1)
    folder.log_metrics({"step": 1, "loss": 1.0})
    del folder
    with pytest.raises(UserError, match=r"holds another run \(metrics.jsonl\); add --resume auto"):
        RunFolder(tmp_path, resume=False)
    RunFolder(tmp_path, resume=True)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    code = f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from engine.run_folder import RunFolder
        folder = RunFolder(Path({str(tmp_path)!r}), resume=False)
        print("held", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another run is writing"):
            RunFolder(tmp_path, resume=True)
        other.stdin.close()
    RunFolder(tmp_path, resume=True)  # it died, and its lock with it


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, resume=True)
    folder.start_metrics(0, -1)
    for step in (1, 2, 3):
        folder.log_metrics({"step": step, "loss": step / 3})
        folder.log_metrics({"step": step, "eval": {"miou": step / 4}})
    del folder
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    # Saved by a signal that interrupted the evaluation of step 2.
    RunFolder(tmp_path, resume=True).start_metrics(2, evaluated_step=1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1 / 3},
        {"step": 1, "eval": {"miou": 1 / 4}},
        {"step": 2, "loss": 2 / 3},
    ]


def test_an_atomic_write_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", b"old")

    def broken(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(UserError, match="could not be written"):
        write_atomically(tmp_path / "a", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]
