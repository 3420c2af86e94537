"""Which folder a run writes, and which checkpoint it continues."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from engine.checkpoint import (
    Checkpoint,
    complete_checkpoints,
    load_checkpoint,
    newest_good_checkpoint,
    recover,
)
from engine.collectives import from_main_process
from engine.options import CommonOptions
from engine.run_folder import RunFolder, continues, default_path, differing_options
from engine.state import Progress
from errors import UserError


def claim_folder(
    accelerator: Accelerator, task_name: str, options: CommonOptions
) -> tuple[RunFolder | None, Path]:
    """Take the run's folder (main process) and agree on its path (one collective).

    Raises:
        UserError: see RunFolder; or ``--resume auto`` without ``--output_dir``.
    """
    if options.resume == "auto" and options.output_dir is None:
        raise UserError("--resume auto continues the run in --output_dir; give that folder.")
    folder = None
    if accelerator.is_main_process:
        path = Path(options.output_dir or default_path(task_name, options))
        if options.eval_only and options.resume == "auto" and not (path / "checkpoints").is_dir():
            raise UserError(f"There is no run in {path} to evaluate; check --output_dir.")
        folder = RunFolder(path, resume=continues(options))
        recover(path / "checkpoints")
    return folder, from_main_process(folder.path if folder else None)


def find_checkpoint(accelerator: Accelerator, options: CommonOptions, path: Path) -> Path | None:
    """The checkpoint that ``--resume`` asks for, the same on every process (one collective)."""
    if options.resume == "never":
        return None
    if options.resume != "auto":
        return _given_checkpoint(Path(options.resume))
    newest = None
    if accelerator.is_main_process:
        newest, skipped = newest_good_checkpoint(path / "checkpoints")
        for sentence in skipped:
            print(sentence, flush=True)
        if newest is None and skipped:
            raise UserError(
                f"None of the checkpoints in {path / 'checkpoints'} can be used; remove that "
                "folder and metrics.jsonl to start over, or give another --output_dir."
            )
        if newest is None and options.eval_only:
            raise UserError(f"There is no checkpoint in {path} to evaluate; check --output_dir.")
    return from_main_process(newest)


def _given_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"There is no checkpoint folder {path}; check --resume.")
    inside = complete_checkpoints(path / "checkpoints") or complete_checkpoints(path)
    if inside:
        raise UserError(
            f"{path} is no checkpoint but holds some; give one, --resume {inside[-1]}, or continue "
            "the run with --resume auto and its --output_dir."
        )
    return path


def read_checkpoint(path: Path, options: CommonOptions, identity: dict[str, Any]) -> Checkpoint:
    """Read the checkpoint that a run continues.

    Raises:
        UserError: it is damaged, or belongs to another training; the message names what differs.
    """
    checkpoint = load_checkpoint(path)
    stored = checkpoint.state
    missing = {"options", "identity", *asdict(Progress())} - set(stored)
    if missing:
        raise UserError(
            f"{path} holds no {', '.join(sorted(missing))}: it is not a checkpoint of this version "
            "of the scripts; give another --resume."
        )
    differs = differing_options(stored["options"], options)
    differs += [
        f"{key} {stored['identity'].get(key)} -> {now}"
        for key, now in identity.items()
        if stored["identity"].get(key) != now
    ]
    if differs:
        raise UserError(
            f"{path} belongs to a training with other options ({'; '.join(differs)}); use the same "
            "ones, or give another --output_dir."
        )
    return checkpoint
