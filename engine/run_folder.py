"""The folder of a run: who may write it, and the files in it besides the checkpoints."""

import fcntl
import json
import os
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from engine.options import CommonOptions
from errors import UserError


class RunFolder:
    """``<output_dir>``: config.yaml, metrics.jsonl, summary.json, checkpoints/, tensorboard/.

    Only the main process constructs one; it holds a lock on the folder until it ends.

    Args:
        path: the folder; made if it doesn't exist.
        resume: whether this run may continue the one that is there.

    Raises:
        UserError: the folder is another run's, belongs to a running one, or can't be written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")  # noqa: SIM115 (held until the process ends)
        except OSError as error:
            raise UserError(
                f"The output folder {path} can't be written ({error.strerror}); give another "
                "--output_dir."
            ) from None
        try:
            # lockf, not flock: loader workers, which can outlive a killed run, don't inherit it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"Another run is writing to {path} now; wait for it or give another --output_dir."
            ) from None
        except OSError as error:  # some network file systems have no locks
            print(f"{path} can't be locked ({error.strerror}): start no second run there.")
        if not resume:
            refuse_other_run(path)

    def write_options(self, options: CommonOptions) -> None:
        """Write config.yaml, which ``--config`` reads.

        With ``--resume auto`` it continues the run, with another ``--output_dir`` it repeats it.
        """
        values = asdict(options) | {"output_dir": str(self.path)}
        values.pop("resume", None)
        text = yaml.safe_dump(values, sort_keys=False)
        write_atomically(self.path / "config.yaml", text.encode())

    def start_metrics(self, step: int, evaluated_step: int) -> None:
        """Open metrics.jsonl without what a lost part of the run has written.

        Args:
            step: the last step of the part that is kept.
            evaluated_step: its last evaluation's step; the one at ``step`` may be yet to come.
        """
        path = self.path / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    values = json.loads(line)
                    if values["step"] <= (evaluated_step if "eval" in values else step):
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    break  # the line in which the run was killed
        write_atomically(path, "".join(kept).encode())
        self._metrics = open(path, "a")  # noqa: SIM115 (open as long as the run)

    def log_metrics(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, with floats at full precision."""
        try:
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise _not_written(self.path / "metrics.jsonl", error) from None

    def write_summary(self, summary: dict[str, Any], name: str) -> None:
        """Write summary.json, or another summary by its name."""
        text = json.dumps(summary, indent=2, default=str) + "\n"
        write_atomically(self.path / name, text.encode())


def refuse_other_run(path: Path) -> None:
    """Refuse a folder in which a run has written something.

    Raises:
        UserError: it holds checkpoints or metrics.
    """
    metrics = path / "metrics.jsonl"
    if any((path / "checkpoints").glob("step_*")) or (
        metrics.exists() and metrics.stat().st_size > 0
    ):
        raise UserError(
            f"{path} holds another run; add --resume auto to continue it, or give another "
            "--output_dir."
        )


def continues(options: CommonOptions) -> bool:
    """Whether ``--resume`` continues the run that the output folder already holds."""
    if options.resume in ("never", "auto") or options.output_dir is None:
        return options.resume == "auto"
    return (
        Path(options.resume).resolve().parent == Path(options.output_dir).resolve() / "checkpoints"
    )


def default_path(task: str, options: CommonOptions) -> Path:
    """A new folder for a run without ``--output_dir``."""
    name = f"{task}-{options.dataset}-{options.model}".replace("/", "_").replace(":", "_")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never half of it.

    Raises:
        UserError: the disk is full or not writable.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise _not_written(path, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} could not be written ({error.strerror}); make room and run again "
        "with --resume auto."
    )


def differing_options(stored: dict[str, Any], options: CommonOptions) -> list[str]:
    """Options that must not change within a run and did, as ``name: then -> now``."""
    now = asdict(options)
    return [
        f"--{field.name} {stored[field.name]} -> {now[field.name]}"
        for field in fields(options)
        if field.metadata["resume"] == "same"
        and field.name in stored
        and stored[field.name] != now[field.name]
    ]
