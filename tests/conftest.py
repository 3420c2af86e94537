"""Runs of the training scripts for the tests: in this process, or launched as a user would."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

# The tests compare bits and start several processes: they run on the CPU, also where there are
# GPUs. Set before torch looks for them. Tests marked gpu undo it for what they start.
SHOWN = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Sums of one thread have the same bits in every test, and two workers of pytest share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

from tests.table import SCRIPTS

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]


def environment_with_gpus() -> dict[str, str]:
    """The environment as it was before the tests hid the GPUs."""
    hidden = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return hidden if SHOWN is None else hidden | {"CUDA_VISIBLE_DEVICES": SHOWN}


# Files whose tests take longest start first, so that no worker ends long after the other.
LONGEST = ("test_invariance", "test_norm_processes", "test_resume", "test_norm", "test_pipeline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and skip the tests marked gpu where there is none."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    found = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    if subprocess.run(found, env=environment_with_gpus(), check=False).returncode:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@dataclass
class Run:
    """What a run left behind.

    Attributes:
        path: its output folder.
        status: its exit status.
        output: what it printed, both streams.
    """

    path: Path
    status: int
    output: str = ""

    @property
    def lines(self) -> list[dict]:
        """metrics.jsonl."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict]:
        """The lines of training steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def losses(self) -> list[float]:
        """The loss of every logged step."""
        return [line["loss"] for line in self.steps]

    @property
    def evals(self) -> list[dict]:
        """The metrics of every evaluation."""
        return [line["eval"] for line in self.lines if "eval" in line]

    @property
    def summary(self) -> dict:
        """summary.json."""
        return json.loads((self.path / "summary.json").read_text())

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints."""
        return sorted(path.name for path in (self.path / "checkpoints").iterdir())


def flags(**options: object) -> list[str]:
    """Options as a command line."""
    return [f"--{name}={value}" for name, value in options.items()]


def launched(command: list[str], path: Path, timeout: float = 300, **environment: str) -> Run:
    """Run a command as a user would, in the repository, with one thread per process."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        env.pop(name, None)  # as earlier runs in this process may have left them
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Run(path, done.returncode, done.stdout)


def accelerate(processes: int, *arguments: str) -> list[str]:
    """An ``accelerate launch`` command with the 2-GPU file and so many processes."""
    config = str(ROOT / "accelerate_configs" / "2gpu.yaml")
    options = ["--config_file", config, "--num_processes", str(processes)]
    return [*LAUNCH, *options, "--main_process_port", "0", *arguments]


def train_here(script: str, path: Path, **options: object) -> Run:
    """Run a training script, made tiny, in this process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    module = importlib.import_module(script)
    row = SCRIPTS[script]
    tiny = row.tiny_with(options.get("dataset", "synthetic"))
    parsed = row.options(**tiny | {"output_dir": str(path)} | options)
    parsed.check()
    return Run(path, module.main(parsed))


@pytest.fixture
def train(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Run]:
    """Run the test module's SCRIPT in this process: ``train("name", lr=0.1, ...)``."""

    def run(name: str = "run", **options: object) -> Run:
        return train_here(request.module.SCRIPT, tmp_path / name, **options)

    return run


def write_recipe(path: Path, **options: object) -> str:
    """Write options as a file for ``--config``."""
    path.write_text(yaml.safe_dump(options))
    return str(path)
