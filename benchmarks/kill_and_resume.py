"""Kill a training at random moments, again and again, and check that nothing was lost.

    python benchmarks/kill_and_resume.py --kills 25
    python benchmarks/kill_and_resume.py --kills 25 --script detection

One run on two processes is left alone. Another, with the same options, is struck at random moments
(while it starts, trains, evaluates, saves or ends) in a random way and started again with
``--resume auto``, until it has been struck so often and then finishes. After every strike each
checkpoint must be whole and nothing of the job may be left running; the curve and the weights of
each run that finishes must be the first one's to the last bit. Exit status 1 if not.

    kill       SIGKILL to one process
    kill all   SIGKILL to the launcher and all processes
    launcher   SIGKILL to the launcher alone: its processes notice, save and stop
    worker     SIGKILL to one worker of a loader
    stop       SIGSTOP to one process for two seconds, then SIGKILL to the launcher and all
    writing    SIGKILL to all as soon as a checkpoint is being written
    term       SIGTERM to the launcher, as Slurm and spot machines send it
    int        SIGINT to the launcher and all processes, as Ctrl-C does
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.curve import curve
from engine.checkpoint import complete_checkpoints, fault, load_checkpoint
from engine.run_folder import read_best

WAYS = ("kill", "kill all", "launcher", "worker", "stop", "writing", "term", "int")
# For all that was struck; the launcher's own patience with its processes is 30.
SECONDS_TO_END = 120
COMPARED = ("step", "samples", "loss", "lr", "grad_norm", "eval")
COMMON = {
    "num_workers": 1,
    "limit_train": 50,
    "limit_val": 10,
    "log_every": 1,
    "eval_every": 10,
    "checkpoint_every": 4,
    "resume": "auto",
}
WHOLE = {"norm": "sync_bn", "ema": 0.9, "batch_size": 2}
SCRIPTS = {
    "segmentation": WHOLE | {"image_size": [32, 32], "crop_size": [32, 32], "pictures": 1},
    "detection": WHOLE | {"image_size": [64, 64], "mosaic": 0.5, "pictures": 1},
    "video": WHOLE
    | {
        "clip_frames": 4,
        "crop_size": [24, 24],
        "short_side": [24, 28],
        "eval_short_side": 24,
        "pictures": 1,
    },
    "classification": WHOLE | {"image_size": [24, 24], "mixup": 0.2, "pictures": 1},
    "pipeline": {"model": "syncbnnet", "batch_size": 8, "image_size": 32},
}


def start(path: Path, script: str, steps: int) -> subprocess.Popen:
    """Start or continue a run on two processes; its output goes to a file beside it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = COMMON | SCRIPTS[script] | {"max_steps": steps, "output_dir": path}
    flags = [f"--{name}={value}" for name, value in options.items()]
    with open(path.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [*command, f"train_{script}.py", *flags],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def family_of(launcher: subprocess.Popen) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The ranks of a job, and the workers of their loaders."""
    try:
        ranks = psutil.Process(launcher.pid).children()
        return ranks, [worker for rank in ranks for worker in rank.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [], []


def send(processes: list[psutil.Process], signum: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        try:
            process.send_signal(signum)
        except psutil.NoSuchProcess:
            continue


def strike(launcher: subprocess.Popen, way: str, rng: random.Random) -> list[psutil.Process]:
    """Strike in one of WAYS and wait for the end; returns what is left of the job."""
    ranks, workers = family_of(launcher)
    if way == "worker" and not workers:
        way = "kill"
    if way == "stop" and ranks:
        send([rng.choice(ranks)], signal.SIGSTOP)
        time.sleep(2)
    if way in ("kill", "worker"):
        victims = ranks if way == "kill" else workers
        send([rng.choice(victims)] if victims else [], signal.SIGKILL)
        if not victims:
            launcher.kill()
    elif way in ("kill all", "stop", "writing"):
        launcher.kill()
        send(ranks, signal.SIGKILL)
    elif way == "launcher":
        launcher.kill()
    elif way == "term":
        launcher.terminate()
    else:
        send(ranks, signal.SIGINT)
        launcher.send_signal(signal.SIGINT)
    launcher.wait(timeout=SECONDS_TO_END)
    _, left = psutil.wait_procs([*ranks, *workers], timeout=SECONDS_TO_END)
    return left


def wait_until(launcher: subprocess.Popen, seconds: float, folder: Path | None) -> bool:
    """Wait so long, then, given a folder, until a checkpoint is being written in it.

    Returns:
        Whether the job is still running.
    """
    try:
        launcher.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        if folder is None:
            return True
    while launcher.poll() is None:
        if any(folder.glob(".step_*")):
            return True
        time.sleep(0.0005)
    return False


def same_run(path: Path, other: Path) -> bool:
    """Whether two finished runs have the same curve, weights and optimizer, to the last bit."""
    mine, theirs = (
        load_checkpoint(complete_checkpoints(p / "checkpoints")[-1]) for p in (path, other)
    )
    best = [load_file(p / "best.safetensors") for p in (path, other)]
    return (
        curve(path, *COMPARED) == curve(other, *COMPARED)
        and same_values(*best)
        and same_values(mine.model, theirs.model)
        and same_values(mine.ema, theirs.ema)
        and same_values(mine.optimizer, theirs.optimizer)
        and mine.state["best"] == theirs.state["best"] == read_best(path / "best.safetensors")
    )


def same_values(mine: object, theirs: object) -> bool:
    """Whether two nested values are the same to the last bit."""
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same_values(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, list):
        pairs = zip(mine, theirs, strict=True)
        return len(mine) == len(theirs) and all(same_values(*pair) for pair in pairs)
    return mine == theirs


def main() -> None:
    """Run the comparison that the module's docstring describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", choices=SCRIPTS, default="segmentation")
    parser.add_argument("--kills", type=int, default=20, help="how often to strike")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of moments and ways")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    with tempfile.TemporaryDirectory() as folder:
        alone, struck = Path(folder) / "alone", Path(folder) / "struck"
        begun = time.monotonic()
        if start(alone, args.script, args.steps).wait() != 0:
            sys.exit(alone.with_suffix(".log").read_text())
        length = time.monotonic() - begun

        kills: Counter[str] = Counter()
        ways: list[str] = []
        while kills.total() < args.kills:
            ways = ways or rng.sample(args.ways, len(args.ways))  # each as often as the others
            launcher, way = start(struck, args.script, args.steps), ways[-1]
            checkpoints = struck / "checkpoints"
            writing = way == "writing"  # early, so that checkpoints are still to come
            seconds = rng.uniform(0.1, 0.4 if writing else 1) * length
            if wait_until(launcher, seconds, checkpoints if writing else None):
                left = strike(launcher, way, rng)
                kills[ways.pop()] += 1
                damaged = [p for p in complete_checkpoints(checkpoints) if fault(p)]
                lines = curve(struck)
                at = lines[-1]["step"] if lines else 0
                print(
                    f"{kills.total():>4} {way:<9} at step {at}, damaged checkpoints: "
                    f"{len(damaged)}, processes left: {len(left)}",
                    flush=True,
                )
                if damaged or left:
                    sys.exit(struck.with_suffix(".log").read_text()[-5000:])
            else:  # it finished first: begin anew
                same = launcher.returncode == 0 and same_run(struck, alone)
                print(f"     finished; the run is {'the same' if same else 'ANOTHER'}", flush=True)
                if not same:
                    sys.exit(struck.with_suffix(".log").read_text()[-5000:])
                shutil.rmtree(struck)
        if start(struck, args.script, args.steps).wait() != 0:
            sys.exit(struck.with_suffix(".log").read_text()[-5000:])
        same = same_run(struck, alone)
        counts = ", ".join(f"{count} {way}" for way, count in sorted(kills.items()))
        print(f"{kills.total()} kills of {args.script} ({counts}); ", end="")
        print(f"curve and weights are {'the same to the last bit' if same else 'OTHERS'}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
