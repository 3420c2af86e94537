"""Kill a training at random moments, again and again, and check that nothing was lost.

    python benchmarks/kill_and_resume.py --kills 100
    python benchmarks/kill_and_resume.py --kills 100 --script train_pipeline

One run on two processes is left alone. Another, with the same options, is struck at random moments
(while it starts, trains, evaluates, saves or ends) in a random way and started again with
``--resume auto``, until it has been struck so often and then finishes. Its curve must be the first
one's to the last bit, and every checkpoint left must be whole. Exit status 1 if not.

    kill       SIGKILL to one process
    kill all   SIGKILL to the launcher and all processes
    term       SIGTERM to the launcher, as Slurm and spot machines send it
    int        SIGINT to the launcher and all processes, as Ctrl-C does
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from engine.checkpoint import complete_checkpoints, fault

WAYS = ("kill", "kill all", "term", "int")
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
SCRIPTS = {
    "train_segmentation": {
        "norm": "sync_bn",
        "ema": 0.9,
        "batch_size": 2,
        "image_size": [32, 32],
        "crop_size": [32, 32],
        "pictures": 1,
    },
    "train_pipeline": {"model": "syncbnnet", "batch_size": 8, "image_size": 32},
}


def start(path: Path, script: str, steps: int) -> subprocess.Popen:
    """Start or continue a run on two processes; its output goes to a file beside it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = COMMON | SCRIPTS[script] | {"max_steps": steps, "output_dir": path}
    flags = [f"--{name}={value}" for name, value in options.items()]
    with open(path.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [*command, f"{script}.py", *flags],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def strike(launcher: subprocess.Popen, way: str) -> None:
    """Strike in one of WAYS, and wait until everything has ended."""
    try:
        ranks = psutil.Process(launcher.pid).children()
    except psutil.NoSuchProcess:
        ranks = []
    family = [process for rank in ranks for process in [rank, *rank.children(recursive=True)]]
    targets = {"kill": ranks[:1], "kill all": ranks, "term": [], "int": ranks}[way]
    for process in targets:
        try:
            process.send_signal(signal.SIGINT if way == "int" else signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    if way != "kill":
        number = {"kill all": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[way]
        launcher.send_signal(number)
    launcher.wait(timeout=120)
    psutil.wait_procs(family, timeout=30)


def curve(path: Path) -> list[dict]:
    """The lines of metrics.jsonl without throughput and memory."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in COMPARED if key in line} for line in lines]


def main() -> None:
    """Run the comparison that the module's docstring describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", choices=SCRIPTS, default="train_segmentation")
    parser.add_argument("--kills", type=int, default=20, help="how often to strike")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of moments and ways")
    args = parser.parse_args()
    rng = random.Random(args.seed)

    with tempfile.TemporaryDirectory() as folder:
        alone, struck = Path(folder) / "alone", Path(folder) / "struck"
        begun = time.monotonic()
        if start(alone, args.script, args.steps).wait() != 0:
            sys.exit(alone.with_suffix(".log").read_text())
        length = time.monotonic() - begun

        kills = 0
        while kills < args.kills:
            launcher, way = start(struck, args.script, args.steps), rng.choice(WAYS)
            try:
                launcher.wait(timeout=rng.uniform(0.1, 1) * length)
            except subprocess.TimeoutExpired:
                strike(launcher, way)
                kills += 1
                damaged = [p for p in complete_checkpoints(struck / "checkpoints") if fault(p)]
                lines = curve(struck) if (struck / "metrics.jsonl").exists() else []
                at = lines[-1]["step"] if lines else 0
                print(f"{kills:>4} {way:<9} at step {at}, damaged checkpoints: {len(damaged)}")
                if damaged:
                    sys.exit(1)
            else:  # it finished first: begin anew
                same = curve(struck) == curve(alone)
                print(f"     finished; the curve is {'the same' if same else 'ANOTHER'}")
                if launcher.returncode or not same:
                    sys.exit(struck.with_suffix(".log").read_text())
                shutil.rmtree(struck)
        if start(struck, args.script, args.steps).wait() != 0:
            sys.exit(struck.with_suffix(".log").read_text())
        same = curve(struck) == curve(alone)
        print(f"{kills} kills; the curve is {'the same to the last bit' if same else 'ANOTHER'}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
