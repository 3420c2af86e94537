"""Lose a machine in mid-epoch and get it back, and compare with the run that nothing disturbed.

    python benchmarks/elastic.py

Two agents of torchrun on this machine stand for two machines with one process each. When the run
has made a third of its steps, SIGKILL ends the second agent and all its processes. The first goes
on alone, from the newest checkpoint; after another third the second agent is started again, and
both train to the end. The curve must be that of two processes which nothing disturbed, to rounding
(float64). Exit status 1 if not.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.curve import curve

TOLERANCE = 1e-9  # relative, in float64
SECONDS = 600  # until something must have happened
# torch's agents share a store by an address that they remember, also when another one holds the
# store: two that meet again wait for each other for ever (torch 2.14.1).
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
OPTIONS = {
    "double": True,
    "norm": "sync_bn",
    "batch_size": 2,
    "global_batch_size": 8,
    "limit_train": 100,
    "limit_val": 10,
    "num_workers": 1,
    "image_size": [24, 24],
    "log_every": 1,
    "eval_every": 50,
    "checkpoint_every": 5,
    "pictures": 0,
}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def agent(path: Path, port: int, steps: int, name: str) -> subprocess.Popen:
    """Start one machine's agent, of one or two; its output goes to a file beside the run."""
    options = OPTIONS | {"max_steps": steps, "output_dir": path, "resume": "auto"}
    flags = [f"--{key}={value}" for key, value in options.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1"]
    rendezvous = ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=elastic"]
    with open(path.with_name(f"{path.name}.{name}.log"), "a") as log:
        return subprocess.Popen(
            [*torchrun, *rendezvous, "--max_restarts=3", "train_classification.py", *flags],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def world_sizes(launcher: subprocess.Popen) -> list[int]:
    """WORLD_SIZE of the processes that an agent runs."""
    sizes = []
    for process in psutil.Process(launcher.pid).children():
        try:
            sizes.append(int(process.environ().get("WORLD_SIZE", 0)))
        except psutil.Error:
            continue
    return sizes


def wait_for(
    what: str, path: Path, step: int, launcher: subprocess.Popen, size: int, after: int = 0
) -> int:
    """Wait until a step is logged by a job of so many processes.

    Args:
        what: is waited for, for the message.
        path: the run.
        step: the least step.
        launcher: an agent of the job.
        size: the job's processes.
        after: the metrics' file, by ``part``, of another part of the run than the one meant.

    Returns:
        The newest step.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        steps = [line["step"] for line in curve(path) if "loss" in line]
        if steps and steps[-1] >= step and world_sizes(launcher) == [size] and part(path) != after:
            return steps[-1]
        if time.monotonic() > deadline or launcher.poll() is not None:
            sys.exit(f"{what} did not happen.\n{log_of(path)}")
        time.sleep(0.1)


def part(path: Path) -> int:
    """A number of the metrics' file, which every part of a run begins anew."""
    return (path / "metrics.jsonl").stat().st_ino


def log_of(path: Path) -> str:
    """The last words of all agents."""
    return "\n".join(file.read_text()[-3000:] for file in path.parent.glob(f"{path.name}.*.log"))


def kill(launcher: subprocess.Popen) -> None:
    """SIGKILL to an agent and all its processes, as when a machine is lost."""
    processes = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    for process in processes:
        process.kill()
    launcher.wait()


def largest_difference(mine: list[dict], theirs: list[dict]) -> float:
    """The largest relative difference between two curves; infinite if their steps differ."""
    largest = 0.0
    if [line["step"] for line in mine] != [line["step"] for line in theirs]:
        return float("inf")
    for one, other in zip(mine, theirs, strict=True):
        values = (one.get("eval", one), other.get("eval", other))
        for key in ("loss", "grad_norm", "lr", "top1"):
            if key in values[0]:
                a, b = values[0][key], values[1][key]
                largest = max(largest, abs(a - b) / max(abs(a), abs(b), 1e-300))
    return largest


def main() -> None:
    """Run the comparison that the module's docstring describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=900, help="optimizer steps of the run")
    args = parser.parse_args()
    third = args.steps // 3
    with tempfile.TemporaryDirectory() as folder:
        alone, struck = Path(folder) / "alone", Path(folder) / "struck"
        port = free_port()
        agents = [agent(alone, port, args.steps, name) for name in "ab"]
        if [launcher.wait() for launcher in agents] != [0, 0]:
            sys.exit(log_of(alone))

        port = free_port()
        first = agent(struck, port, args.steps, "a")
        time.sleep(3)  # it holds the store where the agents meet
        second = agent(struck, port, args.steps, "b")
        begun = time.monotonic()
        at = wait_for("Training on two", struck, third, first, size=2)
        kill(second)
        print(f"two processes trained to step {at}; the second machine is lost", flush=True)
        lost, before = time.monotonic(), part(struck)
        newest = wait_for("Going on alone", struck, 1, first, size=1, after=before)
        print(f"going on alone after {time.monotonic() - lost:.0f} s, at step {newest}", flush=True)
        at = wait_for("Training alone", struck, 2 * third, first, size=1)
        second = agent(struck, port, args.steps, "b")
        print(f"one process trained to step {at}; the second machine is back", flush=True)
        back, before = time.monotonic(), part(struck)
        newest = wait_for("Going on together", struck, at, first, size=2, after=before)
        print(f"together after {time.monotonic() - back:.0f} s, at step {newest}", flush=True)
        if [first.wait(), second.wait()] != [0, 0]:
            sys.exit(log_of(struck))
        difference = largest_difference(curve(struck), curve(alone))
        print(
            f"{args.steps} steps in {time.monotonic() - begun:.0f} s; the curves differ by at most "
            f"{difference:.1e}, relatively"
        )
        sys.exit(difference > TOLERANCE)


if __name__ == "__main__":
    main()
