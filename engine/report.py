"""What a run shows and writes: progress bar, metrics.jsonl, TensorBoard, summary.json."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from tensorboard.compat.proto.summary_pb2 import Summary
from torchvision.io import encode_png
from tqdm import tqdm

from engine.checkpoint import complete_checkpoints
from engine.options import CommonOptions
from engine.run_folder import RunFolder, not_written, write_atomically
from norm import Disagreement

# Waiting for data is worth a word from this share of the time and these seconds on.
MUCH_WAITING, LONG_WAITING = 0.2, 10.0


class Report:
    """The main process's records; on the other processes every call does nothing.

    Args:
        accelerator: its TensorBoard tracker is started here.
        folder: the run's folder (main process) or None.
        options: logged as hyperparameters.
        best_metric: the metric that is shown first, also beside the hyperparameters.
        start: optimizer steps already done when this part of the run begins.
        total: optimizer steps of the whole run.
        evaluated_step: the step of the last evaluation before ``start``.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: RunFolder | None,
        options: CommonOptions,
        best_metric: str,
        start: int,
        total: int,
        evaluated_step: int = -1,
    ) -> None:
        self.folder, self.best_metric = folder, best_metric
        if folder is None:
            return
        if options.eval_only:  # adds to what is there
            folder.start_metrics(sys.maxsize, sys.maxsize)
        else:
            folder.start_metrics(start, evaluated_step)
        self.summary_name = "evaluation.json" if options.eval_only else "summary.json"
        accelerator.project_configuration.logging_dir = str(folder.path)
        # purge_step: what a killed run logged beyond its last checkpoint is hidden.
        purge = {} if options.eval_only else {"purge_step": start + 1}
        threading.excepthook = leave_to_the_report(threading.excepthook)
        with self._writing():
            sort_before_now(folder.path / "tensorboard")
            accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": purge})
            self.tracker = accelerator.get_tracker("tensorboard")
            self.writer = self.tracker.writer
            self._log_options(options)
        self.figure_paths: set[Path] = set()
        self.bar = tqdm(
            total=total, initial=start, unit="step", desc="train", dynamic_ncols=True, mininterval=1
        )

    def _log_options(self, options: CommonOptions) -> None:
        """Options as a table and as hparams, within the run's own event file.

        Accelerate's ``store_init_configuration`` would start a second event file in a folder
        named after the time, at every resumption another one, and refuse lists.
        """
        from torch.utils.tensorboard.summary import hparams

        values = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in dataclasses.asdict(options).items()
        }
        # TensorBoard takes the metric's values from its curve; hparams needs only the name.
        for summary in hparams(values, {f"val/{self.best_metric}": 0.0}):
            self.writer.file_writer.add_summary(summary)
        table = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        self.writer.add_text("options", f"| option | value |\n|---|---|\n{table}")

    def train(self, step: int, samples: int, values: dict[str, float]) -> None:
        """A logged training step: a line in metrics.jsonl, scalars, the numbers on the bar."""
        if self.folder is None:
            return
        # JSON has no infinity: fp16's overflows are null.
        finite = {key: v if math.isfinite(v) else None for key, v in values.items()}
        self.folder.log_metrics({"step": step, "samples": samples, **finite})
        self._log({f"train/{key}": value for key, value in values.items()}, step)
        rate = values["images_per_second"]
        self.bar.set_postfix_str(f"loss {values['loss']:.4f}, {rate:.1f} images/s", refresh=False)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.folder is not None:
            self.bar.update(step - self.bar.n)

    def evaluation(self, step: int, samples: int, metrics: dict[str, float]) -> None:
        """An evaluation: a line in metrics.jsonl, scalars, a line on the screen."""
        if self.folder is None:
            return
        finite = {key: v if math.isfinite(v) else None for key, v in metrics.items()}
        self.folder.log_metrics({"step": step, "samples": samples, "eval": finite})
        self._log({f"val/{key}": value for key, value in metrics.items()}, step)
        best = self.best_metric
        shown = [best, *(key for key in metrics if "/" not in key and key != best)]
        self.say(f"step {step}: " + ", ".join(f"{key} {metrics[key]:.4f}" for key in shown))

    def disagreement(self, step: int, found: Disagreement) -> None:
        """How far apart the processes' batch statistics are: what normalisation this run needs."""
        if self.folder is not None:
            values = {
                "norm/disagreement": found.share,
                "norm/disagreement_worst": found.worst_share,
            }
            self._log(values, step)

    def figures(self, step: int, figures: dict[str, torch.Tensor]) -> None:
        """Figures for TensorBoard, and the newest of each as a PNG in the run's folder."""
        for name, figure in figures.items():
            png = encode_png(figure).numpy().tobytes()
            _, height, width = figure.shape
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=png
            )
            # add_image would encode it a second time.
            value = Summary.Value(tag=f"val/{name}", image=image)
            with self._writing():
                self.writer.file_writer.add_summary(Summary(value=[value]), step)
            path = self.folder.path / f"{name}.png"
            write_atomically(path, png)
            self.figure_paths.add(path)

    def _log(self, values: dict[str, float], step: int) -> None:
        with self._writing():
            self.tracker.log(values, step=step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn TensorBoard's error of a full disk or a removed folder into a sentence."""
        try:
            yield
        except OSError as error:
            raise not_written(self.folder.path / "tensorboard", error) from None

    def say(self, sentence: str) -> None:
        """Print a line above the progress bar."""
        if self.folder is not None:
            self.bar.write(sentence)

    def close(self) -> None:
        """Close the bar, also after an error, so that the error's sentence stands below it."""
        if self.folder is not None:
            self.bar.close()

    def finish(self) -> None:
        """Write what TensorBoard still holds.

        Raises:
            UserError: the disk is full, or the folder is gone.
        """
        if self.folder is not None:
            with self._writing():
                self.writer.close()

    def conclude(
        self, summary: dict[str, Any], evaluated_step: int, finished_before: bool = False
    ) -> None:
        """Write the summary, and say what came out and where it is.

        Args:
            summary: the content of summary.json.
            evaluated_step: the step of the last evaluation.
            finished_before: there was nothing left to do; the run keeps the summary that it has.
        """
        if self.folder is None:
            return
        self.close()
        if finished_before and (self.folder.path / self.summary_name).exists():
            print(f"This run had already finished, after {summary['steps']} steps.")
        else:
            self.folder.write_summary(summary, self.summary_name)
        metrics, best = summary["metrics"], self.best_metric
        for which in ("best", "last"):
            if best in metrics[which]:
                step = metrics[which].get("step", evaluated_step)
                print(f"{which:>8}  {best} {metrics[which][best]:.4f} at step {step}")
        path = self.folder.path
        places = {
            "summary": [path / self.summary_name],
            "weights": [
                path / "best.safetensors",
                *complete_checkpoints(path / "checkpoints")[-1:],
            ],
            "figures": sorted(self.figure_paths),
        }
        for what, paths in places.items():
            if there := [str(path) for path in paths if path.exists()]:
                print(f"{what:>8}  {', '.join(there)}")
        if summary["norm"]["advice"]:
            print(f"{'norm':>8}  {summary['norm']['kind']}: {summary['norm']['advice']}")
        waited = waiting_advice(summary["data_wait_fraction"], summary["training_seconds"])
        if waited:
            print(f"{'data':>8}  {waited}")
        print(f"{'curves':>8}  tensorboard --logdir {path}")


def leave_to_the_report(hook: Callable) -> Callable:
    """A hook for errors in threads without those of TensorBoard's files, which Report raises."""

    def quiet(args: Any) -> None:
        thread = type(args.thread).__module__
        if not (isinstance(args.exc_value, OSError) and thread.startswith("tensorboard.")):
            hook(args)

    return quiet


def sort_before_now(folder: Path) -> None:
    """Rename event files that are dated later than now, as after the clock was set back.

    TensorBoard reads event files in the order of their names, and each hides the steps that come
    again in the next one: a run's new file must be the last.
    """
    now = int(time.time())
    files = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.name)
    dates = [path.name.split(".")[3] for path in files]
    if not any(date.isdigit() and int(date) >= now for date in dates):
        return
    for number, (path, date) in enumerate(zip(files, dates, strict=True)):
        rest = path.name.split(f".{date}.", 1)[-1]
        os.replace(path, folder / f"events.out.tfevents.{now - len(files) + number:010d}.{rest}")


def waiting_advice(share: float, seconds: float) -> str:
    """A sentence for runs that waited for data; "" where little time went into it.

    Args:
        share: of the time of training in which the main process waited.
        seconds: of training, without evaluating and saving.
    """
    if share < MUCH_WAITING or share * seconds < LONG_WAITING:
        return ""
    return (
        f"{share:.0%} of the time of training went into waiting for data: give more "
        "--num_workers if processors are idle, else smaller files."
    )


class Stopwatch:
    """Throughput and the share of time spent waiting for data.

    Args:
        samples: trained on before.
        elapsed: the seconds which that took.
        waited: those of them in which this process waited for data.
    """

    def __init__(self, samples: int = 0, elapsed: float = 0.0, waited: float = 0.0) -> None:
        self.start = time.monotonic() - elapsed
        self.samples = samples
        self.waited = waited

    @property
    def elapsed(self) -> float:
        """Seconds until now."""
        return max(time.monotonic() - self.start, 1e-9)

    def reading(self) -> dict[str, float]:
        """Samples per second over all processes and this process's waiting share."""
        elapsed = self.elapsed
        return {
            "images_per_second": self.samples / elapsed,
            "data_wait_fraction": self.waited / elapsed,
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory used so far: allocated on the CUDA device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        info = psutil.Process().memory_info()
        return getattr(info, "peak_wset", info.rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def profiler(enabled: bool, folder: RunFolder | None) -> Iterator[Callable[[], None]]:
    """A profiler of three steps, main process only; the trace goes to ``<output_dir>/profile``.

    Yields:
        A function to call after every step.
    """
    if not (enabled and folder):
        yield lambda: None
        return
    place = folder.path / "profile"
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=torch.profiler.tensorboard_trace_handler(str(place)),
        record_shapes=True,
    ) as profile:
        yield profile.step
    print(f"Profiler trace: {place} (open it in chrome://tracing or Perfetto)")
