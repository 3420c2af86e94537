"""Checkpoints: complete or absent, verified before use, and loaded without unpickling code.

A checkpoint is a folder ``step_00001234`` with

    model.safetensors       weights and buffers, BatchNorm's plain names
    ema.safetensors         the averaged weights, if there are any
    optimizer.pt            torch.save, read with weights_only=True
    state.json              step, samples, best metric, options
    manifest.json           size and SHA-256 of each of the above

It is written beside its final place, flushed to the disk and renamed.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from errors import UserError

MANIFEST = "manifest.json"
REQUIRED = {"model.safetensors", "optimizer.pt", "state.json"}
REPLACED = ".replaced"


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
    state_dict: dict[str, torch.Tensor], header: dict[str, str] | None = None
) -> bytes:
    """A state dict as the content of a safetensors file, with entries for its header."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    copies = {k: v.detach().cpu().contiguous().clone() for k, v in state_dict.items()}
    return save(copies, header)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``folder/step_N`` atomically, then remove all but it and the ``keep - 1`` before it.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are untouched.
    """
    name = f"step_{checkpoint.state['step']:08d}"
    beside, replaced, final = folder / f".{name}", folder / f".{name}{REPLACED}", folder / name
    try:
        recover(folder)
        beside.mkdir(parents=True)
        manifest = {}
        for file_name, content in _files(checkpoint):
            _write(beside / file_name, content)
            digest = hashlib.sha256(content).hexdigest()
            manifest[file_name] = {"bytes": len(content), "sha256": digest}
        _write(beside / MANIFEST, json.dumps(manifest, indent=2).encode())
        if final.exists():  # between these two renames it is recover that finds the old one
            os.rename(final, replaced)
        os.rename(beside, final)
        _sync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        recover(folder)
        raise UserError(
            f"The checkpoint {final} could not be written ({error.strerror}); make room and run "
            "again with --resume auto: the checkpoints before it are intact."
        ) from None
    # Checkpoints of later steps are damaged, or belong to a training that was abandoned.
    others = complete_checkpoints(folder)
    current = [path for path in others if path.name <= name][-keep:]
    for old in set(others) - set(current):
        shutil.rmtree(old, ignore_errors=True)
    return final


def recover(folder: Path) -> None:
    """Undo what a kill or an error in the middle of saving has left behind.

    Only for the process that writes the folder.
    """
    for replaced in folder.glob(f".step_*{REPLACED}"):
        final = folder / replaced.name.removeprefix(".").removesuffix(REPLACED)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, final)
    for unfinished in folder.glob(".step_*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    yield "model.safetensors", weights_bytes(checkpoint.model)
    if checkpoint.ema is not None:
        yield "ema.safetensors", weights_bytes(checkpoint.ema)
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    yield "optimizer.pt", buffer.getvalue()
    yield "state.json", json.dumps(checkpoint.state, indent=2).encode()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / MANIFEST).exists())


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if unlisted := REQUIRED - set(manifest):
            return f"{MANIFEST} doesn't list {', '.join(sorted(unlisted))}"
        for name, expected in manifest.items():
            content = (path / name).read_bytes()
            if len(content) != expected["bytes"]:
                return f"{name} has {len(content)} bytes instead of {expected['bytes']}"
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                return f"the content of {name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it can't be read ({error})"
    return None


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
        ema = path / "ema.safetensors"
        return Checkpoint(
            model=load_file(path / "model.safetensors"),
            ema=load_file(ema) if ema.exists() else None,
            optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            state=json.loads((path / "state.json").read_text()),
        )
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error)
        raise UserError(f"The checkpoint {path} can't be used: {first_line}") from None
