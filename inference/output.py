"""The folder that predict.py writes: a line per input, and what follows from all of them.

    predictions.jsonl    a line per input, in their order: what was found, or why it failed
    predictions.csv      the same as a table
    metrics.json         the scores, where the inputs come with their truth
    run.json             what made them

Until all inputs are done, each process appends its lines to a file of its own. A killed run leaves
complete lines behind, with which ``--skip_done`` goes on.
"""

import csv
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from engine.collectives import from_main_process
from engine.run_folder import write_atomically
from errors import UserError
from inference.inputs import Input, keeping, readable
from inference.options import PredictOptions
from inference.sources import Source
from inference.task_output import TaskOutput, task_output
from inference.trained import Trained
from models.find_weights import find_weights

RECORDS, TABLE, RUN, METRICS = "predictions.jsonl", "predictions.csv", "run.json", "metrics.json"
PART = ".part-*.jsonl"
# What decides about results; another value can't go on in the same folder.
DECISIVE = (
    *("input", "dataset", "data_dir", "split", "data_options", "model_options", "max_frames"),
    *("tile", "overlap", "tta", "every", "score", "top", "save"),
)


class OutputFolder:
    """``--output``: claimed now, filled while predicting, and concluded.

    Args:
        options: output, skip_done, and what decides about results.
        model: what predicts.
        source: the inputs.
        accelerator: joined with the other processes.

    Attributes:
        todo: numbers of the inputs that are not done yet, the same on every process.

    Raises:
        UserError: the folder can't be written, or holds other predictions.
    """

    def __init__(
        self, options: PredictOptions, model: Trained, source: Source, accelerator: Accelerator
    ) -> None:
        self.path, self.source, self.accelerator = Path(options.output), source, accelerator
        self.task: TaskOutput = task_output(model, options, self.path)
        done: dict[str, str] = {}
        if accelerator.is_main_process:
            self._claim(options, model)
            done = self._collect()
            for note in source.notes:
                print(note)
        done = from_main_process(done)
        source.inputs = keeping(source.inputs, done)
        self.todo = [n for n, each in enumerate(source.inputs) if each.name not in done]
        if done and accelerator.is_main_process:
            print(f"{len(source.inputs) - len(self.todo)} inputs are done, {len(self.todo)} to go.")
        self._lock = threading.Lock()
        part = self.path / PART.replace("*", str(accelerator.process_index))
        self._part = open(part, "a")  # noqa: SIM115 (open until concluded)

    def _claim(self, options: PredictOptions, model: Trained) -> None:
        made_by = {"weights_sha256": _digest(find_weights(options.weights))}
        made_by["precision"] = model.precision
        made_by |= {name: asdict(options)[name] for name in DECISIVE}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            before = self.path / RUN
            if (self.path / RECORDS).exists() or any(self.path.glob(PART)):
                if not options.skip_done:
                    raise UserError(
                        f"{self.path} holds predictions; add --skip_done to go on with the inputs "
                        "not done yet, or give another --output."
                    )
                known = json.loads(before.read_text()) if before.exists() else {}
                other = [name for name, value in made_by.items() if known.get(name) != value]
                if other:
                    raise UserError(
                        f"The predictions in {self.path} were made with another "
                        f"{' and '.join(other)}; give the same ones, or another --output."
                    )
            before.write_text(json.dumps(made_by, indent=2) + "\n")
        except OSError as error:
            raise UserError(
                f"The output folder {self.path} can't be written ({error.strerror}); give another "
                "--output."
            ) from None

    def _collect(self) -> dict[str, str]:
        """Bring all lines into one file, in the order of the inputs.

        Returns:
            The ``out`` of those that succeeded, by name.

        Raises:
            UserError: one succeeded before that is no input now, and would be lost.
        """
        where: dict[str, tuple[Path, int]] = {}
        done: dict[str, str] = {}
        files = [self.path / RECORDS, *sorted(self.path.glob(PART))]
        for file in filter(Path.exists, files):
            for offset, record in read_records(file):
                name = record["input"]
                where[name] = file, offset  # a later line is a later attempt
                done.pop(name, None)
                if record["error"] is None:
                    done[name] = record["out"]
        lost = sorted(done.keys() - {each.name for each in self.source.inputs})
        if lost:
            others = f" and {len(lost) - 1} others" if len(lost) > 1 else ""
            raise UserError(
                f"{self.path} holds results of {lost[0]}{others}, which the inputs lack now: give "
                "the same inputs and more, or another --output."
            )
        beside = self.path / f".{RECORDS}"
        with open(beside, "wb") as target:
            for each in self.source.inputs:
                if each.name in where:
                    file, offset = where[each.name]
                    with open(file, "rb") as lines:
                        lines.seek(offset)
                        target.write(lines.readline())
        beside.replace(self.path / RECORDS)
        for part in self.path.glob(PART):
            part.unlink()
        return done

    def succeeded(self, number: int, media: Any, result: Any, truth: Any) -> None:
        """Write what was found in an input, its line last; may be called by several threads."""
        each = self.source.inputs[number]
        values = self.task.record(result) | self.task.files_of(each)
        if truth is not None:
            values["truth"] = self.task.judged(result, truth)
        self.task.write(each, media, result)
        self.add(each, values)

    def failed(self, number: int, reason: str) -> None:
        """Note that an input could not be used."""
        each, reason = self.source.inputs[number], readable(reason)
        self.add(each, {}, reason)
        tqdm_write(f"{each.name}: {reason}")

    def add(self, each: Input, values: dict[str, Any], error: str | None = None) -> None:
        """Append a line."""
        line = json.dumps({"input": each.name, "error": error, "out": each.out, **values})
        with self._lock:
            self._part.write(line + "\n")
            self._part.flush()

    def conclude(self) -> int:
        """Write what follows from all inputs, when every process is done (a barrier).

        Returns:
            The exit status: 1 if an input failed.
        """
        self._part.close()
        self.accelerator.wait_for_everyone()
        status = None
        if self.accelerator.is_main_process:
            done = len(self._collect())
            failed = len(self.source.inputs) - done
            self._write_table()
            self.task.conclude(self.records())
            print(f"{done} of {len(self.source.inputs)} inputs done, in {self.path}")
            if failed:
                print(f"{failed} failed; {self.path / TABLE} says why.")
            if self.source.is_scored and done:
                metrics = self.task.score(self.records())
                text = json.dumps({"inputs": done, "failed": failed, "metrics": metrics}, indent=2)
                write_atomically(self.path / METRICS, f"{text}\n".encode())
                print(", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if "/" not in k))
            status = 1 if failed else 0
        return from_main_process(status)

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines of the inputs that succeeded, in their order."""
        for _, record in read_records(self.path / RECORDS):
            if record["error"] is None:
                yield record

    def _write_table(self) -> None:
        beside = self.path / f".{TABLE}"
        with open(beside, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["input", "status", "reason", *self.task.columns])
            for _, record in read_records(self.path / RECORDS):
                error = record["error"]
                cells = [] if error else self.task.row(record)
                cells += [""] * (len(self.task.columns) - len(cells))
                table.writerow([record["input"], "failed" if error else "done", error, *cells])
        beside.replace(self.path / TABLE)


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The complete lines of a file, each with the place where it begins."""
    with open(path, "rb") as file:
        while True:
            offset, line = file.tell(), file.readline()
            if not line.endswith(b"\n"):  # the end, or the line in which a run was killed
                return
            yield offset, json.loads(line)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tqdm_write(line: str) -> None:
    """Print a line above the progress bar."""
    from tqdm import tqdm

    tqdm.write(line)
