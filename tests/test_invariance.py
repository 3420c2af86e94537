"""k processes with batch b compute the same training as one process with batch k*b.

Each number of processes is launched once and runs every script, because the imports take longer
than the trainings.
"""

import json
from pathlib import Path

import pytest

from tests.coco_folder import write_coco
from tests.conftest import LAUNCH, ROOT, Run, accelerate, launched
from tests.table import SCRIPTS

PRECISIONS = [(script, "float64", 1e-9) for script in SCRIPTS]
PRECISIONS += [(script, "float32", row.rounding) for script, row in SCRIPTS.items()]
STEPS, HALF = 20, 10

COMMON = {
    "limit_train": 40,
    "max_steps": STEPS,
    "eval_every": HALF,
    "norm": "sync_bn",
    "ema": 0.9,
    "clip_grad": 1.0,
    "num_workers": 1,
    "global_batch_size": 8,
}


def settings(script: str, path: Path, **changes: object) -> list:
    row = SCRIPTS[script]
    options = row.tiny | row.random | COMMON | {"output_dir": str(path)} | changes
    return [script, options]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, Run]:
    """Every script and precision on 1, 2 and 4 processes, and the float64 ones resumed."""
    folder = tmp_path_factory.mktemp("invariance")
    runs = {}
    # Many images of nothing: now and then a process has no object in its batch.
    sparse = {"dataset": "coco", "data_dir": str(write_coco(folder / "coco"))}
    for processes in (2, 4, 1):
        # One process has nothing to synchronise with: its BatchNorm is the reference.
        norm = "sync_bn" if processes > 1 else "bn"
        workers = {1: 0, 2: 1, 4: 3}[processes]
        todo = []
        for script, precision, _ in PRECISIONS:
            path = folder / f"{script}-{precision}-{processes}"
            double = precision == "float64"
            data = sparse if script == "train_detection" else {}
            changes = {"norm": norm, "num_workers": workers, **data}
            todo.append(settings(script, path, double=double, **changes))
            runs[script, precision, processes] = Run(path, 0)
            if double:  # what two processes have begun
                begun = folder / f"{script}-float64-2" / "checkpoints" / f"step_{HALF:08d}"
                path = folder / f"{script}-resumed-{processes}"
                todo.append(settings(script, path, double=True, resume=str(begun), **changes))
                runs[script, "resumed", processes] = Run(path, 0)
            if double and processes == 4:  # what four have begun themselves
                begun = folder / f"{script}-float64-4" / "checkpoints" / f"step_{HALF:08d}"
                path = folder / f"{script}-again"
                todo.append(settings(script, path, double=True, resume=str(begun), **changes))
                runs[script, "again", 4] = Run(path, 0)
        if processes == 2:  # statistics of each process's own, averaged at evaluations and saves
            path, again = folder / "bn", folder / "bn-resumed"
            changes = {"norm": "bn", "double": True}
            todo.append(settings("train_classification", path, **changes))
            begun = str(path / "checkpoints" / f"step_{HALF:08d}")
            todo.append(settings("train_classification", again, resume=begun, **changes))
            runs["bn"], runs["bn-resumed"] = Run(path, 0), Run(again, 0)
        if processes == 4:
            path = folder / "groups"
            changes = {"norm": norm, "double": True, "sync_bn_group_size": 2}
            todo.append(settings("train_classification", path, **changes))
            runs["groups"] = Run(path, 0)
        command = accelerate(processes, "tests/several_runs.py", json.dumps(todo))
        if processes == 1:
            config = str(ROOT / "accelerate_configs" / "1gpu.yaml")
            command = [*LAUNCH, "--config_file", config, *command[-2:]]
        done = launched(command, folder)
        assert done.status == 0, done.output
    return runs


def assert_same(
    run: Run,
    reference: Run,
    tolerance: float,
    after: int = 0,
    magnified: dict[str, float] | None = None,
) -> None:
    """Every step after ``after`` and every evaluation is the reference's."""
    tolerances = magnified or {}
    steps, evals = reference.steps[after:], reference.evals[after // HALF :]
    assert [line["step"] for line in run.steps] == list(range(after + 1, STEPS + 1))
    compared = [key for key in steps[0] if key.startswith("loss") or "per_image" in key]
    assert "loss" in compared
    for mine, theirs in zip(run.steps, steps, strict=True):
        assert mine["samples"] == theirs["samples"]
        for key in (*compared, "lr", "grad_norm"):
            expected = pytest.approx(theirs[key], rel=tolerances.get(key, tolerance))
            assert mine[key] == expected, (mine["step"], key)
    assert len(run.evals) == len(evals) > 0
    for mine, theirs in zip(run.evals, evals, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("script, precision, tolerance", PRECISIONS)
def test_the_training_is_that_of_one_process(runs, script, precision, tolerance, processes) -> None:
    mine, one = (runs[script, precision, count] for count in (processes, 1))
    magnified = SCRIPTS[script].magnified if precision == "float32" else None
    assert_same(mine, one, tolerance, magnified=magnified)


def test_plain_batch_norm_resumes_too(runs) -> None:
    run, whole = runs["bn-resumed"], runs["bn"]
    assert run.losses == whole.losses[HALF:]
    assert run.evals[-1] == pytest.approx(whole.evals[-1], rel=1e-9)


def test_groups_have_statistics_of_their_own(runs) -> None:
    run, whole = runs["groups"], runs["train_classification", "float64", 4]
    assert run.losses[0] != pytest.approx(whole.losses[0], rel=1e-6)
    assert run.losses[0] == pytest.approx(whole.losses[0], rel=0.5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_training_is_the_same(runs, script) -> None:
    whole = runs[script, "float64", 2]
    assert_same(runs[script, "resumed", 2], whole, tolerance=0, after=HALF)
    # Among more than two, a sum's last bits depend on where DDP's buckets hold a value.
    assert_same(runs[script, "again", 4], runs[script, "float64", 4], tolerance=0, after=HALF)
    for processes in (1, 4):
        assert_same(runs[script, "resumed", processes], whole, tolerance=1e-9, after=HALF)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_files_are_those_of_one_run(runs, script) -> None:
    run = runs[script, "float64", 2]
    assert run.summary["world_size"] == 2
    assert run.summary["norm"]["kind"] == "sync_bn"
    assert run.summary["global_batch_size"] == 8
    assert 0 < run.summary["norm"]["disagreement"] < 1 and run.summary["norm"]["advice"]
    assert len(list(run.path.rglob("events.out.tfevents*"))) == 1
    assert sum(run.losses[-5:]) < sum(run.losses[:5])
