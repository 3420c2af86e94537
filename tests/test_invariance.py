"""k processes with batch b compute the same training as one process with batch k*b."""

import json
from pathlib import Path

import pytest

from tests.conftest import LAUNCH, ROOT, TINY, Run, accelerate, launched

# A script joins the promise by standing here, with options that make it small.
SCRIPTS = {"train_segmentation": {**TINY, "aux_loss": 0.4, "loss": "ce_dice"}}

COMMON = {
    "limit_train": 40,
    "max_steps": 20,
    "eval_every": 10,
    "norm": "sync_bn",
    "ema": 0.9,
    "clip_grad": 1.0,
    "num_workers": 1,
    "global_batch_size": 8,
}
PRECISIONS = {"float64": (True, 1e-9), "float32": (False, 1e-4)}
COMPARED = ("loss", "loss_ce", "loss_dice", "loss_aux", "lr", "grad_norm")


def settings(script: str, double: bool, path: Path, **changes: object) -> list:
    options = SCRIPTS[script] | COMMON | {"double": double, "output_dir": str(path)} | changes
    return [script, options]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple, Run]:
    """Every script and precision on 1, 2 and 4 processes: one launch for each number."""
    folder = tmp_path_factory.mktemp("invariance")
    runs = {}
    for processes in (1, 2, 4):
        todo = []
        for script in SCRIPTS:
            for name, (double, _) in PRECISIONS.items():
                path = folder / f"{script}-{name}-{processes}"
                # One process has nothing to synchronise with: its BatchNorm is the reference.
                norm = "sync_bn" if processes > 1 else "bn"
                workers = {1: 0, 2: 1, 4: 3}[processes]
                changes = {"norm": norm, "num_workers": workers}
                todo.append(settings(script, double, path, **changes))
                runs[script, name, processes] = Run(path, 0)
        command = accelerate(processes, "tests/several_runs.py", json.dumps(todo))
        if processes == 1:
            config = str(ROOT / "accelerate_configs" / "1gpu.yaml")
            command = [*LAUNCH, "--config_file", config, *command[-2:]]
        done = launched(command, folder)
        assert done.status == 0, done.output
    return runs


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_training_is_that_of_one_process(runs, script, precision, processes) -> None:
    alone, together = runs[script, precision, 1], runs[script, precision, processes]
    tolerance = PRECISIONS[precision][1]
    assert len(together.steps) == 20
    for mine, reference in zip(together.steps, alone.steps, strict=True):
        for key in COMPARED:
            assert mine[key] == pytest.approx(reference[key], rel=tolerance), (mine["step"], key)
        assert mine["samples"] == reference["samples"]
    assert len(together.evals) == 2
    for mine, reference in zip(together.evals, alone.evals, strict=True):
        assert mine == pytest.approx(reference, rel=tolerance)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_files_are_those_of_one_run(runs, script) -> None:
    run = runs[script, "float32", 2]
    assert run.summary["world_size"] == 2
    assert run.summary["norm"]["kind"] == "sync_bn"
    assert run.summary["global_batch_size"] == 8
    assert 0 < run.summary["norm"]["disagreement"] < 1 and run.summary["norm"]["advice"]
    assert [line["step"] for line in run.steps] == list(range(1, 21))
    assert len(list(run.path.rglob("events.out.tfevents*"))) == 1
    losses = run.losses
    assert sum(losses[-5:]) < sum(losses[:5])
