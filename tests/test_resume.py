"""A run that is killed continues as if nothing had happened, also on other processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import LAUNCH, ROOT, Run, accelerate, flags, launched
from tests.table import SCRIPTS

SCRIPT = "train_segmentation.py"
STEPS = 36
OPTIONS = SCRIPTS["train_segmentation"].tiny | {
    "limit_train": 20,
    "max_steps": STEPS,
    "eval_every": 12,
    "checkpoint_every": 3,
    "norm": "sync_bn",
    "ema": 0.9,
    "num_workers": 1,
    "global_batch_size": 4,
    "warmup_steps": 5,
}


def command(processes: int, path: Path, **changes: object) -> list[str]:
    options = OPTIONS | {"output_dir": path} | changes
    if processes == 1:
        config = str(ROOT / "accelerate_configs" / "1gpu.yaml")
        return [*LAUNCH, "--config_file", config, SCRIPT, *flags(**options)]
    return accelerate(processes, SCRIPT, *flags(**options))


def same_curve(run: Run, reference: Run, rel: float = 0.0) -> None:
    """Every loss and metric equals the reference's; bit for bit with rel 0."""
    keys = ("step", "samples", "loss", "lr", "grad_norm")
    assert len(run.steps) == STEPS
    for mine, theirs in zip(run.steps, reference.steps, strict=True):
        for key in keys:
            assert mine[key] == pytest.approx(theirs[key], rel=rel, abs=0), (mine["step"], key)
    assert len(run.evals) == len(reference.evals) == 3
    for mine, theirs in zip(run.evals, reference.evals, strict=True):
        assert mine == pytest.approx(theirs, rel=rel, abs=0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing interrupts."""
    path = tmp_path_factory.mktemp("reference") / "run"
    run = launched(command(2, path), path)
    assert run.status == 0, run.output
    return run


def logged(metrics: Path) -> int:
    """Training steps in a metrics.jsonl."""
    return metrics.read_text().count('"loss"')


def interrupt(
    start: list[str],
    path: Path,
    step: int,
    strike: Callable[[subprocess.Popen, list[psutil.Process]], None],
) -> tuple[int, str]:
    """Start a run on 2 processes, strike once it has logged ``step``, wait for its end.

    Returns:
        The launcher's exit status and everything printed.
    """
    log = open(path.with_suffix(".log"), "w+")  # noqa: SIM115
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(start, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
    metrics = path / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else 0
    deadline = time.monotonic() + 120
    resumed_at = None  # lines kept of the earlier parts, once this part has rewritten the file
    while resumed_at is None or logged(metrics) < max(step, resumed_at + 1):
        assert time.monotonic() < deadline and launcher.poll() is None, log.read()
        if resumed_at is None and metrics.exists() and metrics.stat().st_ino != before:
            resumed_at = logged(metrics)
        time.sleep(0.01)
    ranks = [
        process
        for process in psutil.Process(launcher.pid).children()
        if any(part.startswith("train_") for part in process.cmdline())
    ]
    assert len(ranks) == 2
    ranks.sort(key=lambda process: int(process.environ()["RANK"]))
    started = time.monotonic()
    strike(launcher, ranks)
    status = launcher.wait(timeout=60)
    psutil.wait_procs(ranks, timeout=30)
    assert not any(process.is_running() for process in ranks)
    assert time.monotonic() - started < 45  # not a collective's timeout of half an hour
    log.seek(0)
    return status, log.read()


def kill_one(launcher: subprocess.Popen, ranks: list[psutil.Process]) -> None:
    ranks[1].kill()


def kill_all(launcher: subprocess.Popen, ranks: list[psutil.Process]) -> None:
    for process in [psutil.Process(launcher.pid), *ranks]:
        process.kill()


def kill_launcher(launcher: subprocess.Popen, ranks: list[psutil.Process]) -> None:
    """The launcher alone dies by SIGKILL; its processes notice it and stop by themselves."""
    launcher.kill()


def terminate(launcher: subprocess.Popen, ranks: list[psutil.Process]) -> None:
    launcher.send_signal(signal.SIGTERM)


def interrupt_all(launcher: subprocess.Popen, ranks: list[psutil.Process]) -> None:
    """Ctrl-C: the terminal signals the launcher and every rank."""
    for process in ranks:
        process.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGINT)


def test_a_run_killed_in_every_way_continues_bit_for_bit(tmp_path: Path, reference: Run) -> None:
    path = tmp_path / "run"
    strikes = [(2, kill_one), (9, kill_all), (14, kill_launcher), (20, terminate)]
    for number, (step, strike) in enumerate([*strikes, (26, interrupt_all)]):
        start = command(2, path, resume="auto" if number else "never")
        status, output = interrupt(start, path, step, strike)
        assert status != 0
        if strike in (kill_launcher, terminate, interrupt_all):
            # Saved where it stopped, not at the last regular checkpoint.
            assert "resume auto continues" in output
            last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
            saved = sorted((path / "checkpoints").glob("step_*"))
            assert saved[-1].name == f"step_{last:08d}"
    run = launched(command(2, path, resume="auto"), path)
    assert run.status == 0, run.output
    same_curve(run, reference)
    assert run.summary["metrics"] == reference.summary["metrics"]


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_give_their_status(tmp_path: Path, signum: int, status: int) -> None:
    path = tmp_path / "run"
    options = flags(**OPTIONS | {"max_steps": 5000, "output_dir": path})
    run = subprocess.Popen(
        [sys.executable, SCRIPT, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= 4):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signum)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == status, output
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (path / "checkpoints" / f"step_{last:08d}").is_dir()
    assert "Traceback" not in output


def test_torchrun_restarts_and_resumes_by_itself(tmp_path: Path, reference: Run) -> None:
    path = tmp_path / "run"
    torchrun = [os.path.join(os.path.dirname(LAUNCH[0]), "torchrun")]
    options = flags(**OPTIONS, output_dir=path, resume="auto")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    log = open(path.with_suffix(".log"), "w+")  # noqa: SIM115
    job = subprocess.Popen(
        [*torchrun, "--standalone", "--nproc_per_node=2", "--max_restarts=1", SCRIPT, *options],
        cwd=ROOT,
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    metrics = path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= 5):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    psutil.Process(job.pid).children()[0].kill()
    status = job.wait(timeout=200)
    log.seek(0)
    assert status == 0, log.read()
    same_curve(Run(path, 0), reference)


def test_random_kills_lose_nothing() -> None:
    options = ["--kills", "2", "--steps", "60", "--ways", "kill", "writing"]
    run = launched([sys.executable, "benchmarks/kill_and_resume.py", *options], Path(), timeout=280)
    assert run.status == 0, run.output
    assert (
        "2 kills of segmentation (1 kill, 1 writing); curve and weights are the same" in run.output
    )
