"""The folder of a run: who may write it, and the files in it besides the checkpoints."""

import json
import os
import time
from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from engine.about import read_about
from engine.options import CommonOptions
from errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Files that a run writes, beside its figures.
OWN = (
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "evaluation.json",
    "data.tsv",
    "best.safetensors",
    "checkpoints",
    "tensorboard",
    "profile",
)
# Made at the first checkpoint: a folder that has it, and no checkpoint, has lost some.
SAVED = ".saved"


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
            self._lock = _open_lock(path / ".lock")
        except OSError as error:
            raise UserError(
                f"The output folder {path} can't be written ({error.strerror}); give another "
                "--output_dir."
            ) from None
        try:
            if fcntl is None:
                raise OSError(0, "no locks on this system")
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

        With ``--resume auto`` it continues the run. With another ``--output_dir`` it repeats it on
        the same number of processes; on another number ``--global_batch_size`` must be given too.
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
        lines = path.read_bytes().splitlines() if path.exists() else []
        steps = [_step_of(line, step, evaluated_step) for line in lines]
        torn = len(lines) - 1  # the line in which the run was killed
        strange = [str(n + 1) for n, kept in enumerate(steps) if kept is None and n != torn]
        if strange:
            print(
                f"{path}: line {', '.join(strange[:5])}{' and others' * (len(strange) > 5)} can't "
                f"be read; the file as it was is {path.name}.before."
            )
            write_atomically(path.with_name(f"{path.name}.before"), path.read_bytes())
        kept = [line + b"\n" for line, keep in zip(lines, steps, strict=True) if keep]
        write_atomically(path, b"".join(kept))
        self._metrics = open(path, "a")  # noqa: SIM115 (open as long as the run)

    def log_metrics(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, with floats at full precision."""
        try:
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise not_written(self.path / "metrics.jsonl", error) from None

    def write_summary(self, summary: dict[str, Any], name: str) -> None:
        """Write summary.json, or another summary by its name."""
        text = json.dumps(summary, indent=2, default=str) + "\n"
        write_atomically(self.path / name, text.encode())


def _step_of(line: bytes, step: int, evaluated_step: int) -> bool | None:
    """Whether a line of metrics.jsonl is of the part that is kept; None if it can't be read."""
    try:
        values = json.loads(line)
        return bool(values["step"] <= (evaluated_step if "eval" in values else step))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _open_lock(path: Path) -> Any:
    """Open or make the lock's file, but no file that a link leads to."""
    if path.is_symlink():
        raise OSError(0, f"its {path.name} is a link; remove it")
    return open(path, "a")


def refuse_other_run(path: Path) -> None:
    """Refuse a folder in which a run has written something.

    Raises:
        UserError: it holds a file that a run writes.
    """
    try:
        found = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    except NotADirectoryError:
        raise UserError(f"{path} is a file; give another --output_dir.") from None
    own = next((name for name in found if name in OWN or name.endswith(".png")), None)
    if own:
        raise UserError(
            f"{path} holds another run ({own}); add --resume auto to continue it, or give another "
            "--output_dir."
        )


def lost_checkpoints(path: Path) -> str | None:
    """The file which shows that a run without any checkpoint once had some, or None."""
    return next(
        (n for n in (SAVED, "best.safetensors", "summary.json") if (path / n).exists()), None
    )


def read_best(path: Path) -> dict[str, float] | None:
    """What the best weights say of themselves: their metrics and "step".

    {} where there is no such file, None where it doesn't say.
    """
    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt"):
            about = read_about(path)
    except (OSError, SafetensorError):
        print(f"{path} can't be read; the next evaluation's weights replace it.")
        return {}
    return about and {"step": about.step, **about.metrics}


def continues(options: CommonOptions) -> bool:
    """Whether ``--resume`` continues the run that the output folder already holds."""
    if options.resume in ("never", "auto") or options.output_dir is None:
        return options.resume == "auto"
    return (
        Path(options.resume).resolve().parent == Path(options.output_dir).resolve() / "checkpoints"
    )


def make_default_path(task: str, options: CommonOptions) -> Path:
    """Make a new folder for a run without ``--output_dir``."""
    name = f"{task}-{options.dataset}-{options.model}".replace("/", "_").replace(":", "_")
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number, path = 1, first
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:  # another run began in the same second
            number += 1
            path = first.with_name(f"{first.name}-{number}")
        except OSError as error:
            raise UserError(
                f"The output folder {path} can't be written ({error.strerror}); give --output_dir."
            ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never half of it.

    Raises:
        UserError: the disk is full or not writable.
    """
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        beside.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> UserError:
    """The error for a file of a run that can't be written."""
    return UserError(
        f"{path} could not be written ({error.strerror}); make room and run again "
        "with --resume auto."
    )


def differing_options(
    stored: dict[str, Any], options: CommonOptions, free: Collection[str] = ()
) -> list[str]:
    """Options that must not change within a run and did, as ``name: then -> now``.

    Args:
        stored: the values of then.
        options: those of now.
        free: names and groups of others that may change.
    """
    now = asdict(options)
    return [
        f"--{field.name} {stored[field.name]} -> {now[field.name]}"
        for field in fields(options)
        if field.metadata["resume"] == "same"
        and not {field.name, field.metadata["group"]} & {*free}
        and field.name in stored
        and stored[field.name] != now[field.name]
    ]
