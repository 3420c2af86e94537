"""Which folder a run writes, which checkpoint it continues, and whether it may."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from engine.checkpoint import (
    complete_checkpoints,
    newest_good_checkpoint,
    recover,
)
from engine.collectives import from_main_process
from engine.fingerprint import (
    Record,
    differences,
    digests_of,
    read_record,
    with_contents_of,
    without_contents,
)
from engine.options import CommonOptions
from engine.run_folder import (
    RunFolder,
    continues,
    differing_options,
    lost_checkpoints,
    make_default_path,
    read_best,
)
from engine.state import Progress
from errors import UserError

# Options, and what follows from the launch, that matter to training and not to the evaluation of
# a checkpoint.
OF_TRAINING = (
    "limit_train",
    "limit_val",
    "batch and length",
    "augmentation",
    "evaluation and files",
)
LAUNCH_OF_TRAINING = ("global_batch_size", "samples_per_statistic", "train_samples")

# What a checkpoint's state.json must hold.
NEEDED = {
    "options": dict,
    "identity": dict,
    "samples": int,
    "evaluated_step": int,
    "metrics": dict,
    "best": dict,
}


def claim_folder(
    accelerator: Accelerator, task_name: str, options: CommonOptions
) -> tuple[RunFolder | None, Path]:
    """Take the run's folder (main process) and agree on its path and options (one collective).

    Raises:
        UserError: see RunFolder; or the processes were given different options; or ``--resume
            auto`` without ``--output_dir``.
    """
    if options.resume == "auto" and options.output_dir is None:
        raise UserError("--resume auto continues the run in --output_dir; give that folder.")
    folder = None
    if accelerator.is_main_process:
        given = options.output_dir
        path = Path(given) if given else make_default_path(task_name, options)
        if options.eval_only and options.resume == "auto" and not (path / "checkpoints").is_dir():
            raise UserError(f"There is no run in {path} to evaluate; check --output_dir.")
        folder = RunFolder(path, resume=continues(options))
        recover(path / "checkpoints")
    path, values = from_main_process((folder.path, asdict(options)) if folder else None)
    if differs := differing_options(values, options):
        raise UserError(
            f"Process {accelerator.process_index} was given other options than process 0 "
            f"({'; '.join(differs)}); give all the same, or set WORLD_SIZE=1 and RANK=0 for tasks "
            "that should train separately."
        )
    return folder, path


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
        if newest is None and (trace := lost_checkpoints(path)):
            raise UserError(
                f"{path} holds {trace} of a run but no checkpoint to continue it from: put its "
                f"folder checkpoints back; or remove {path} to start over, or give another "
                "--output_dir."
            )
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


def refuse_other_training(
    path: Path, stored: dict[str, Any], options: CommonOptions, identity: dict[str, Any]
) -> None:
    """Refuse the checkpoint of another training.

    Args:
        path: the checkpoint.
        stored: its state.json.
        options: those of now.
        identity: what must be the same beside the options.

    Raises:
        UserError: names what differs.
    """
    missing = [name for name in NEEDED if not isinstance(stored.get(name), NEEDED[name])]
    if missing:
        raise UserError(
            f"{path} holds no {', '.join(missing)}: it is not a checkpoint of this version of the "
            "scripts; give another --resume."
        )
    free: tuple[str, ...] = ()
    if options.eval_only:
        free = (*OF_TRAINING, *LAUNCH_OF_TRAINING)
    elif options.allow_changed_data or "data" in stored:
        free = ("train_samples",)  # other data are refused by name
    differs = differing_options(stored["options"], options, free)
    differs += [
        f"{key} {stored['identity'].get(key)} -> {now}"
        for key, now in identity.items()
        if stored["identity"].get(key) != now
        and key not in free
        # Evaluated, SyncBatchNorm is BatchNorm.
        and not (options.eval_only and {stored["identity"].get(key), now} == {"bn", "sync_bn"})
    ]
    if differs:
        raise UserError(
            f"{path} belongs to a training with other options ({'; '.join(differs)}); use the same "
            "ones, or give another --output_dir."
        )


def compare_data(
    accelerator: Accelerator,
    path: Path,
    digests: dict[str, str] | None,
    options: CommonOptions,
    record: Record,
) -> tuple[list[str], Record]:
    """Compare the data of now with those of the checkpoint's run (one collective).

    Args:
        accelerator: joined with the other processes.
        path: the checkpoint; what its run had is in its folder's data.tsv.
        digests: what the checkpoint holds of it.
        options: allow_changed_data, eval_only, compare_contents.
        record: of the data of now, on the main process.

    Returns:
        Which of "train" and "val" differ, and the record, which keeps what the run knew of the
        contents of files that were not read now and are of the same size.

    Raises:
        UserError: the data differ and ``--allow_changed_data`` wasn't given; names the samples.
    """
    found: dict[str, list[str]] = {}
    if accelerator.is_main_process:
        before = read_record(path.resolve().parent.parent / "data.tsv")
        if before is not None and digests_of(before) != digests:
            before = None  # of another part of the run
        found = _changes(path, digests, before, record)
        if options.compare_contents:
            _name_what_is_not_compared(path, before)
        if before is not None:
            record = {s: with_contents_of(before[s], samples) for s, samples in record.items()}
        if options.eval_only:
            found.pop("train", None)
    found = from_main_process(found)
    sentence = "; ".join(f"{split}: {what}" for split, kinds in found.items() for what in kinds)
    if found and not (options.allow_changed_data or options.eval_only):
        raise UserError(
            f"The data are not those that {path} was trained with ({sentence}). Restore them, add "
            "--allow_changed_data to go on with those of now, or give another --output_dir."
        )
    if found:
        accelerator.print(f"The data are not those that {path} was trained with ({sentence}).")
    return list(found), record


def _name_what_is_not_compared(path: Path, before: Record | None) -> None:
    """Say where ``--compare_contents`` has nothing to compare with."""
    if before is None:
        print(f"What is in the files can't be compared without the data.tsv of {path}'s run.")
    elif missing := sum(map(without_contents, before.values())):
        print(
            f"What is in the files of {missing} samples can't be compared: the run of {path} had "
            "not read them, without --compare_contents. From now on it can."
        )


def _changes(
    path: Path, stored: Any, before: Record | None, record: Record
) -> dict[str, list[str]]:
    """What differs in each split that does."""
    if not isinstance(stored, dict):
        print(f"{path} doesn't say which data it was trained with, so they can't be compared.")
        return {}
    now = digests_of(record)
    differ = [split for split in record if now[split] != stored.get(split)]
    if before is None:
        return {
            split: ["which samples can't be told without its run's data.tsv"] for split in differ
        }
    found = {split: differences(before[split], record[split]) for split in record}
    return {split: kinds for split, kinds in found.items() if kinds}


def take_over_best(path: Path, progress: Progress) -> None:
    """Believe what the best weights in a folder say of themselves (one collective).

    A kill can come between the writing of the weights and of the checkpoint. A new folder has no
    best weights.
    """
    best = from_main_process(read_best(path / "best.safetensors"))
    progress.best = progress.best if best is None else best


def go_on_with_other_data(
    accelerator: Accelerator, path: Path, progress: Progress, changed: list[str]
) -> None:
    """Note from which step on it is other data; with other validation data "best" begins anew."""
    progress.data_changed.append(progress.step)
    accelerator.print(f"From step {progress.step} on it is the data of now.")
    if "val" not in changed:
        return
    progress.best = {}
    progress.evaluated_step = min(progress.evaluated_step, progress.step - 1)  # begin with these
    best, aside = path / "best.safetensors", path / f"best_before_step_{progress.step}.safetensors"
    if accelerator.is_main_process and best.exists():
        os.replace(best, aside)
        print(f"The best weights so far are {aside}; the search for the best begins anew.")
