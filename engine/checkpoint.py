"""Checkpoints: complete or absent, verified before use, and loaded without unpickling code.

A checkpoint is a folder ``step_00001234`` with

    model.safetensors       weights and buffers, BatchNorm's plain names
    ema.safetensors         the averaged weights, if there are any
    optimizer.pt            torch.save, read with weights_only=True
    state.json              step, samples, best metric, options
    manifest.json           size and SHA-256 of each of the above

It is written beside its final place, flushed to the disk and renamed; one that is no longer wanted
is renamed before it is deleted. Everything in the folder of the checkpoints that has another name
is somebody else's.
"""

import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from errors import UserError

MANIFEST, STATE = "manifest.json", "state.json"
REQUIRED = {"model.safetensors", "optimizer.pt", STATE}
EMA = "ema.safetensors"
NAME = re.compile(r"step_\d{8}")
LARGEST_STEP = 99_999_999
# What writing and pruning leave if they are cut short: unfinished, replaced or pruned.
REPLACED, PRUNED = ".replaced", ".pruned"
REMAINS = re.compile(rf"\.(step_\d{{8}})({REPLACED}|{PRUNED})?")
LARGEST_JSON = 2**26  # bytes


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        model: state dict of the unwrapped model.
        ema: state dict of the averaged model, or None.
        optimizer: state dict of the optimizer.
        state: JSON values: step, samples, best, options.
    """

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]
    state: dict[str, Any]


def weights_bytes(
    state_dict: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> bytes:
    """A state dict in host memory, whose tensors share none of it, as a safetensors file."""
    return save({name: tensor.contiguous() for name, tensor in state_dict.items()}, metadata)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``folder/step_N`` atomically, then remove all but it and the ``keep - 1`` before it.

    Args:
        folder: of the checkpoints.
        checkpoint: in host memory; no two of its tensors share any.
        keep: how many to keep.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are untouched.
    """
    final = _place(folder, checkpoint.state["step"], _files(checkpoint))
    # Checkpoints of later steps are damaged, or belong to a training that was abandoned.
    others = complete_checkpoints(folder)
    current = [path for path in others if path.name <= final.name][-keep:]
    for old in set(others) - set(current):
        pruned = folder / f".{old.name}{PRUNED}"
        try:
            os.rename(old, pruned)
        except OSError:
            continue
        _remove(pruned)
    return final


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the state.json of the checkpoint of its step, atomically; the rest stays as it is.

    Raises:
        UserError: it isn't there, or the disk is full or not writable; it is untouched.
    """
    _place(folder, state["step"], [(STATE, _json(state))], only_state=True)


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step_{step:08d}"


def _place(
    folder: Path,
    step: int,
    files: Iterable[tuple[str, bytes]],
    only_state: bool = False,
) -> Path:
    """Put a checkpoint into its place: of these files, or with only the state exchanged."""
    name = step_name(step)
    beside, replaced, final = folder / f".{name}", folder / f".{name}{REPLACED}", folder / name
    try:
        recover(folder)
        beside.mkdir(parents=True)
        manifest = _read_json(final / MANIFEST) if only_state else {}
        for file_name in manifest.keys() - {STATE}:
            _link(final / file_name, beside / file_name)
        for file_name, content in files:
            _write(beside / file_name, content)
            digest = hashlib.sha256(content).hexdigest()
            manifest[file_name] = {"bytes": len(content), "sha256": digest}
        _write(beside / MANIFEST, _json(manifest))
        _sync_folder(beside)
        if final.exists():  # between these two renames it is recover that finds the old one
            os.rename(final, replaced)
        os.rename(beside, final)
        _sync_folder(folder)
        _remove(replaced)
    except (OSError, ValueError) as error:
        recover(folder)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The checkpoint {final} could not be written ({reason}); make room and run "
            "again with --resume auto: the checkpoints before it are intact."
        ) from None
    return final


def recover(folder: Path) -> None:
    """Undo what a kill or an error in the middle of saving or pruning has left behind.

    Only for the process that writes the folder.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        found = REMAINS.fullmatch(path.name)
        if found and found[2] == REPLACED and not (folder / found[1]).exists():
            os.rename(path, folder / found[1])
        elif found:
            _remove(path)


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    yield "model.safetensors", weights_bytes(checkpoint.model)
    if checkpoint.ema is not None:
        yield EMA, weights_bytes(checkpoint.ema)
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    yield "optimizer.pt", buffer.getvalue()
    yield STATE, _json(checkpoint.state)


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=2).encode()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    """Delete a folder, or a link to one."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can't be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    inside = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in inside if NAME.fullmatch(p.name) and (p / MANIFEST).exists())


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = _read_json(path / MANIFEST)
        if unlisted := REQUIRED - set(manifest):
            return f"{MANIFEST} doesn't list {', '.join(sorted(unlisted))}"
        if foreign := set(manifest) - REQUIRED - {EMA}:
            return f"{MANIFEST} lists {', '.join(sorted(foreign))}, which is no part of it"
        for name, expected in manifest.items():
            size = _size(path / name)
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"the content of {name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"it can't be read ({error})"
    return None


def _size(path: Path) -> int:
    """The size of a file in bytes; a pipe or a device, which reading may never end, is an error."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not a file")
    return status.st_size


def _read_json(path: Path) -> dict[str, Any]:
    if _size(path) > LARGEST_JSON:
        raise ValueError(f"{path.name} is too large")
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no names and values")
    return values


def newest_good_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be loaded, and a sentence for each one skipped."""
    skipped = []
    for path in reversed(complete_checkpoints(folder)):
        try:
            load_checkpoint(path)
        except UserError as error:
            skipped.append(f"Skipped: {error}")
        else:
            return path, skipped
    return None, skipped


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint into CPU memory.

    Raises:
        UserError: it isn't one, is damaged, or holds more than data.
    """
    reason = fault(path)
    if reason is not None:
        raise UserError(f"The checkpoint {path} can't be used: {reason}.")
    try:
        state = _read_json(path / STATE)
        step = state["step"]
        if type(step) is not int or not 0 <= step <= LARGEST_STEP:
            raise ValueError(f"its step is {step!r}")
        if NAME.fullmatch(path.name) and path.name != step_name(step):
            raise ValueError(f"it is that of step {step}")
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        if not isinstance(optimizer, dict):
            raise ValueError("optimizer.pt holds no state of an optimizer")
        ema = EMA in _read_json(path / MANIFEST)
        return Checkpoint(
            model=load_file(path / "model.safetensors"),
            ema=load_file(path / EMA) if ema else None,
            optimizer=optimizer,
            state=state,
        )
    except Exception as error:  # of any type: the files may hold anything
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
        raise UserError(f"The checkpoint {path} can't be used: {first_line}.") from None
