"""Some steps of every training script, in every precision, compiled and resumed.

    python -m benchmarks.on_gpu.scripts --device cuda segmentation

Each run is a process of its own, started as a user starts it. Prints a JSON line per run.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.on_gpu.result import DETAILS, LEFT_OUT, Failed, Result, needs_gpu, run_check

ROOT = Path(__file__).parents[2]
LAUNCHERS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

COMMON = {"limit_train": 48, "limit_val": 8, "num_workers": 1, "log_every": 1}
# A learning rate that float32 holds, which is what captured steps have it in.
EXACT = {"lr": 2.0**-8, "schedule": "constant"}
WHOLE_NETWORK = EXACT | {"warmup_steps": 0, "pictures": 1, "cuda_graph": "off"}
OPTIONS = {
    "segmentation": WHOLE_NETWORK | {"image_size": [64, 64], "crop_size": [64, 64]},
    "detection": WHOLE_NETWORK | {"image_size": [96, 96]},
    "video": WHOLE_NETWORK
    | {"clip_frames": 4, "crop_size": [48, 48], "short_side": [48, 56], "eval_short_side": 48},
    "classification": WHOLE_NETWORK | {"image_size": [48, 48]},
    "pipeline": {"model": "syncbnnet_s", "image_size": 48, "batch_size": 8},
}
# Beside float32: Accelerate's mixed precision, further options, how far the losses may be from
# float32's, relatively, and of how many steps.
WAYS = {
    "compiled": ("no", {"compile": True}, 0.01, 1),
    "bf16": ("bf16", {}, 0.1, 1),
    "fp16": ("fp16", {}, 0.1, 1),
    "captured": ("no", {"cuda_graph": "on"}, 5e-3, 6),
    "captured, bf16": ("bf16", {"cuda_graph": "on"}, 0.1, 1),
    "captured, fp16": ("fp16", {"cuda_graph": "on"}, 0.1, 1),
    "captured, compiled": ("no", {"cuda_graph": "on", "compile": True}, 0.01, 1),
}
GPU_ONLY = [way for way in WAYS if way.startswith(("fp16", "captured"))]
DETERMINISTIC = {"deterministic": True}
# What one script is enough for.
ONCE = ["captured, fp16", "captured, compiled"]
LEFT_OUT_OF = {
    "pipeline": ["compiled", *GPU_ONLY],  # it has no such options
    "segmentation": ONCE,
    "detection": ONCE,
    "video": ONCE,
}
# A network whose step can't be captured, because the host looks at what was proposed.
TWO_STAGE = {"model": "fasterrcnn_mobilenet_v3_large_320_fpn", "cuda_graph": "auto"}
# A CPU rehearses one script in all ways that it can, the others in float32.
REHEARSED = "classification"
# The losses of a resumed run may differ from the uninterrupted one's by this, relatively: on a GPU
# some kernels add in an order that changes from run to run.
RESUMED = {"cpu": 0.0, "cuda": 5e-3}


class Run:
    """A finished run.

    Args:
        path: its output folder.

    Attributes:
        path: its output folder.
        losses: of every step that was logged.
        speeds: images per second since the step that was logged before.
        evaluated: whether there was an evaluation.
        summary: summary.json.
        output: what it printed.
    """

    def __init__(self, path: Path, output: str = "") -> None:
        self.path, self.output = path, output
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        self.losses = [line["loss"] for line in steps]
        self.speeds = [line["images_per_second"] for line in steps]
        self.evaluated = any("eval" in line for line in lines)
        self.summary = json.loads((path / "summary.json").read_text())


def train(
    script: str,
    device: str,
    path: Path,
    precision: str = "no",
    launcher: Sequence[str] = (),
    **options: object,
) -> Run:
    """Run a script as ``accelerate launch`` does in one process.

    Args:
        script: without ``train_``.
        device: "cpu" or "cuda".
        path: of the output folder.
        precision: Accelerate's mixed precision.
        launcher: what stands between ``python`` and the script.
        options: of the command line.

    Raises:
        Failed: the script failed, or ran on another device.
    """
    flags = [f"--{name}={value}" for name, value in (options | {"output_dir": path}).items()]
    if device == "cpu":
        flags.append("--cpu")
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": precision}
    for name in LAUNCHERS_VARIABLES:
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, *launcher, f"train_{script}.py", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        tail = done.stdout[-DETAILS // 2 :]
        raise Failed(f"status {done.returncode}: {lines[-1]}\n{tail}")
    run = Run(path, done.stdout)
    if not run.summary["device"].startswith(device):
        raise Failed(f"it ran on {run.summary['device']}")
    return run


class Script:
    """The runs of one script.

    Args:
        name: without ``train_``.
        device: "cpu" or "cuda".
        folder: for the output folders.
    """

    def __init__(self, name: str, device: str, folder: Path) -> None:
        self.name, self.device, self.folder = name, device, folder
        self.half = 6 if device == "cuda" else 2
        steps = 2 * self.half
        lengths = {"max_steps": steps, "eval_every": steps, "checkpoint_every": self.half}
        self.options = COMMON | lengths | OPTIONS[name]

    def run(self) -> None:
        """Run the script in every way, at once on a GPU, and send the results."""
        ways = [way for way in WAYS if way not in LEFT_OUT_OF.get(self.name, ())]
        if self.device == "cpu":
            for way in [way for way in ways if way in GPU_ONLY]:
                needs_gpu(f"{self.name}, {way}").send()
                ways.remove(way)
            if self.name != REHEARSED:
                name = f"{self.name}, {', '.join(['resumed', *ways])}"
                Result(name, LEFT_OUT, f"on the CPU only {REHEARSED} rehearses these").send()
                ways = []
        in_full = self.device == "cuda" or self.name == REHEARSED
        with ThreadPoolExecutor(1 if self.device == "cpu" else 5 + len(ways)) as pool:
            plain = pool.submit(self.train, "float32")
            runs = {way: pool.submit(self._in_way, way) for way in ways}
            if in_full and self.name != "pipeline":
                repeated = pool.submit(self.train, "deterministic", **DETERMINISTIC)
                pool.submit(self._check, "deterministic", partial(self.deterministic, repeated))
                if self.device == "cuda":
                    pool.submit(self._check, "waiting in a step", self.no_waiting)
                    same = partial(self.captured_deterministic, repeated)
                    pool.submit(self._check, "deterministic, captured", same)
            if self.device == "cuda" and self.name == "detection":
                pool.submit(self._check, "two stages, which can't be captured", self.two_stages)
            self._check("float32", lambda: self._losses_of(plain.result()))
            if plain.exception() is None and in_full:
                limit = RESUMED[self.device]
                self._check("resumed", lambda: self.resumed(plain.result(), limit))
            for way, run in runs.items():
                self._check(way, partial(self.like_float32, way, run, plain))

    def _check(self, way: str, check: Callable[[], str]) -> None:
        run_check(f"{self.name}, {way}", check).send()

    def train(self, way: str, precision: str = "no", **options: object) -> Run:
        """Run the script in one way; see ``train``."""
        return train(self.name, self.device, self.folder / way, precision, **self.options | options)

    def _in_way(self, way: str) -> Run:
        precision, options, *_ = WAYS[way]
        return self.train(way, precision, **options)

    def _losses_of(self, run: Run) -> str:
        """The run's first and last loss.

        Raises:
            Failed: a step or the evaluation is missing, or a loss isn't finite.
        """
        losses = run.losses
        if len(losses) != self.options["max_steps"] or not run.evaluated:
            raise Failed(f"{len(losses)} steps were logged, not {self.options['max_steps']}")
        if not all(map(math.isfinite, losses)):
            raise Failed(f"not every loss is finite: {losses}")
        if len(set(losses)) < len(losses) // 2:
            raise Failed(f"the loss doesn't change: {losses}")
        return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"

    def like_float32(self, way: str, run: Future[Run], plain: Future[Run]) -> str:
        """Its losses against float32's.

        Raises:
            Failed: the run failed, or a loss is another.
        """
        figure = self._losses_of(run.result())
        if plain.exception():
            return figure
        *_, limit, steps = WAYS[way]
        off = difference(run.result().losses[:steps], plain.result().losses[:steps], limit)
        return f"{figure}; the first {steps} within {off:.0e} of float32's"

    def captured_deterministic(self, eager: Future[Run]) -> str:
        """Captured steps against the eager ones, both with ``--deterministic``.

        Raises:
            Failed: a loss has other bits.
        """
        captured = self.train("deterministic_captured", cuda_graph="on", **DETERMINISTIC)
        difference(captured.losses, eager.result().losses, 0.0)
        return "the bits of the eager steps"

    def two_stages(self) -> str:
        """A detector that can't be captured trains eagerly and says so.

        Raises:
            Failed: the run failed or said nothing.
        """
        run = self.train("two_stages", **TWO_STAGE)
        said = [line for line in run.output.splitlines() if "run eagerly" in line]
        if not said:
            raise Failed("nothing was said of running eagerly")
        return f"{self._losses_of(run)}; {said[0]}"

    def no_waiting(self) -> str:
        """Nothing in an eager step waits for the GPU.

        Raises:
            Failed: something does; the places are named.
        """
        counter = ["-m", "benchmarks.on_gpu.synchronisations"]
        run = train(self.name, self.device, self.folder / "waits", "no", counter, **self.options)
        found = [line for line in run.output.splitlines() if line.startswith("waits in ")]
        if not found or ": 0" not in found[0]:
            raise Failed(found[0] if found else "nothing was counted")
        return found[0]

    def deterministic(self, repeated: Future[Run]) -> str:
        """A run with ``--deterministic``, resumed; or the operation that it was refused for.

        Raises:
            Failed: a loss of the resumed run has other bits.
        """
        try:
            run = repeated.result()
        except Failed as error:
            sentence = str(error).splitlines()[0]
            if "has no deterministic form" in sentence:
                return f"refused before training: {sentence}"
            raise
        return self.resumed(run, 0.0, deterministic=True)

    def resumed(self, plain: Run, limit: float, **options: object) -> str:
        """Resume a run at its middle, in another folder, and compare the losses.

        Args:
            plain: the uninterrupted run.
            limit: of a relative difference.
            options: that the run was started with beside the usual ones.

        Raises:
            Failed: a loss is another.
        """
        checkpoint = min((plain.path / "checkpoints").glob("step_*"))
        folder = f"{plain.path.name}_resumed"
        losses = self.train(folder, resume=checkpoint, **options).losses
        expected = plain.losses[self.half :]
        if len(losses) != len(expected):
            raise Failed(f"{len(losses)} steps followed step {self.half}, not {len(expected)}")
        off = difference(losses, expected, limit)
        return f"losses within {off:.1e} of the uninterrupted run's"


def difference(losses: list[float], expected: list[float], limit: float) -> float:
    """The largest relative difference.

    Raises:
        Failed: it is more than ``limit``.
    """
    off = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    if not off <= limit:
        raise Failed(f"the losses are off by {off:.1e}, more than {limit:.0e}")
    return off


def main() -> None:
    """Run the script that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("script", choices=list(OPTIONS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Script(options.script, options.device, Path(folder)).run()


if __name__ == "__main__":
    main()
