"""Compare the trainings of two checkouts of this repository, to the last bit.

    python benchmarks/same_training.py OLD_CHECKOUT NEW_CHECKOUT

Every script trains 20 steps with two evaluations: its own model and one of torchvision's, in
float32 and in float64, in one and in two processes on the CPU, and once more from the checkpoint in
the middle. The new checkout also continues the checkpoints of the old one. All lines of
metrics.jsonl must be the same, timings aside. Takes about 20 minutes on two cores.

With --folder the runs of the old checkout are kept there, and not repeated next time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STEPS, HALF = 20, 10
TIMINGS = {"images_per_second", "data_wait_fraction", "memory_bytes", "bubble"}

COMMON = {
    "limit_train": 40,
    "limit_val": 9,
    "max_steps": STEPS,
    "eval_every": HALF,
    "num_workers": 0,
    "log_every": 1,
    "pictures": 1,
    "global_batch_size": 8,
    "clip_grad": 1.0,
    "ema": 0.9,
    "cpu": True,
}
# Everything random is switched on: crops, mosaics and jitter show a change in the order of draws.
SCRIPTS: dict[str, tuple[dict, dict[str, dict]]] = {
    "train_segmentation": (
        {"image_size": [40, 48], "crop_size": [32, 32], "class_weights": "median_frequency"},
        {
            "unet": {"aux_loss": 0.4, "loss": "ce_dice", "norm": "sync_bn"},
            "lraspp_mobilenet_v3_large": {"grad_accum": 2, "eval_size": [48, 48]},
        },
    ),
    "train_detection": (
        {"image_size": [64, 64], "mosaic": 0.5, "mixup": 0.3, "iou_crop": 0.5, "close_mosaic": 0.3},
        {
            "yolo_nano": {"copy_paste": 0.4, "norm": "sync_bn"},
            "ssdlite320_mobilenet_v3_large": {"norm": "bn"},
        },
    ),
    "train_video": (
        {
            "clip_frames": 4,
            "crop_size": [24, 24],
            "short_side": [24, 28],
            "eval_short_side": 24,
            "color_jitter": [0.3, 0.3, 0.3, 0.1],
            "eval_clips": 2,
            "eval_crops": 3,
        },
        {
            "syncbnnet3d": {"label_smoothing": 0.1, "norm": "sync_bn"},
            "mc3_18": {"optimizer": "sgd"},
        },
    ),
    "train_classification": (
        {"image_size": [24, 24], "auto_augment": "rand_augment"},
        {
            "syncbnnet": {"erasing": 0.3, "color_jitter": [0.2, 0.2, 0.2, 0.1], "norm": "sync_bn"},
            "resnet18": {"crop_padding": 2, "precise_bn": 2},
        },
    ),
    "train_pipeline": ({"microbatches": 2, "image_size": 32}, {"syncbnnet": {}, "resnet18": {}}),
}
# What the pipeline script of an old checkout does not know.
NOT_OF_THE_PIPELINE = {"pictures", "global_batch_size", "clip_grad", "ema"}

WORKER = """
import json, runpy, sys
import accelerate
from accelerate.state import AcceleratorState

sys.path.insert(0, ".")
# The runs share one process group, which the end of the first would destroy.
accelerate.Accelerator.end_training = lambda self: [tracker.finish() for tracker in self.trackers]
for script, *arguments in json.loads(sys.argv[1]):
    AcceleratorState._reset_state(reset_partial_state=False)
    sys.argv = [script + ".py", *arguments]
    try:
        runpy.run_path(script + ".py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


class Training(NamedTuple):
    """A training to compare: the script, its options, and the name of its folder."""

    name: str
    script: str
    options: dict[str, object]


def trainings(processes: int) -> Iterator[Training]:
    """The uninterrupted trainings in so many processes."""
    for script, (tiny, models) in SCRIPTS.items():
        for model, special in models.items():
            for precision in ("float32", "float64"):
                options = COMMON | tiny | special
                options |= {"model": model, "double": precision == "float64"}
                if script == "train_pipeline":
                    options = {k: v for k, v in options.items() if k not in NOT_OF_THE_PIPELINE}
                    options["batch_size"] = COMMON["global_batch_size"]
                if processes == 1 and options.get("norm") == "sync_bn":
                    options["norm"] = "bn"
                yield Training(f"{script}-{model}-{precision}-{processes}", script, options)


def resumed(processes: int, runs: Path, prefix: str) -> Iterator[Training]:
    """The float32 trainings again, from the checkpoints in the middle of those below ``runs``."""
    for name, script, options in trainings(processes):
        if not options["double"]:
            checkpoint = runs / name / "checkpoints" / f"step_{HALF:08d}"
            yield Training(f"{prefix}-{name}", script, options | {"resume": str(checkpoint)})


def flags(options: dict[str, object]) -> list[str]:
    """Options as a command line."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        else:
            words.append(f"--{name}={json.dumps(value) if isinstance(value, list) else value}")
    return words


def run(checkout: Path, runs: Path, todo: list[Training], processes: int) -> None:
    """Run trainings in one launch, those aside that have finished before."""
    todo = [each for each in todo if not (runs / each.name / "summary.json").exists()]
    if not todo:
        return
    arguments = [
        [script, *flags(options | {"output_dir": str(runs / name)})]
        for name, script, options in todo
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    worker = runs / "worker.py"
    worker.parent.mkdir(parents=True, exist_ok=True)
    worker.write_text(WORKER)
    command = [sys.executable, *(launch if processes > 1 else []), str(worker)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    print(f"{len(todo)} trainings in {processes} processes of {checkout}", flush=True)
    log = runs / f"log-{processes}.txt"
    with open(log, "a") as output:
        done = subprocess.run(
            [*command, json.dumps(arguments)],
            cwd=checkout,
            env=environment,
            stdout=output,
            stderr=output,
        )
    if done.returncode:
        sys.exit(f"A training failed; the end of {log}:\n{log.read_text()[-3000:]}")


def lines(path: Path, after: int = 0) -> list[dict]:
    """metrics.jsonl after a step, without timings."""
    kept = []
    for line in (path / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if values["step"] > after:
            kept.append({key: value for key, value in values.items() if key not in TIMINGS})
    return kept


def difference(old: list[dict], new: list[dict]) -> str:
    """The first difference in words, or ""."""
    for mine, theirs in zip(new, old, strict=False):
        for key in dict.fromkeys((*theirs, *mine)):
            if mine.get(key) != theirs.get(key):
                return f"step {theirs['step']}, {key}: {theirs.get(key)} -> {mine.get(key)}"
    return "" if len(old) == len(new) else f"{len(old)} lines -> {len(new)} lines"


def main() -> int:
    """Run both checkouts and compare; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--folder", type=Path, help="of the old checkout's runs (default: they are not kept)"
    )
    parser.add_argument("--only", default="", help="only trainings whose names contain this")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        old_runs = (given.folder or Path(temporary) / "old").resolve()
        new_runs = Path(temporary) / "new"
        failed = sum(
            compare(given.old.resolve(), given.new.resolve(), old_runs, new_runs, n, given.only)
            for n in (1, 2)
        )
    print(f"{failed} trainings differ" if failed else "all trainings are the same to the last bit")
    return 1 if failed else 0


def compare(old: Path, new: Path, old_runs: Path, new_runs: Path, processes: int, only: str) -> int:
    """Run the trainings in so many processes and print what differs; returns how many do."""
    whole = [each for each in trainings(processes) if only in each.name]
    again = [each for each in resumed(processes, new_runs, "resumed") if only in each.name]
    # The pipeline script of an old checkout may keep its checkpoints elsewhere.
    crossed = [
        each
        for each in resumed(processes, old_runs, "continued")
        if only in each.name and each.script != "train_pipeline"
    ]
    run(old, old_runs, whole, processes)
    run(new, new_runs, [*whole, *again, *crossed], processes)
    failed = 0
    for each in [*whole, *again, *crossed]:
        after = HALF if "resume" in each.options else 0
        name = each.name.removeprefix("resumed-").removeprefix("continued-")
        found = difference(lines(old_runs / name, after), lines(new_runs / each.name, after))
        failed += bool(found)
        print(f"{'DIFFERS' if found else 'same':8}{each.name}  {found}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
