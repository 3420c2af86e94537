"""Weights from files and from the publishers, into models that need not fit them entirely."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from errors import UserError

logger = logging.getLogger(__name__)

# What --weights may be besides the path of a file.
NAMED_WEIGHTS = ("none", "default", "backbone")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of any other file by `torch.load(weights_only=True)`.

    Finds them also inside the dictionaries that training scripts save ("model", "state_dict"), and
    removes the prefixes of DistributedDataParallel and torch.compile.

    Raises UserError if there is no such file or no weights can be read from it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"--weights {path} is not a file: pass the path of one or {', '.join(NAMED_WEIGHTS)}."
        )
    if path.is_dir():
        raise UserError(f"--weights {path} is a folder: pass a file in it, e.g. best.safetensors.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any type: an unpickler that is fed something else
        raise UserError(
            f"--weights {path} can't be read as weights: it is damaged, or a .pth file that "
            "holds more than tensors; save the model's state_dict() alone, best as .safetensors."
        ) from error

    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UserError(f"--weights {path} holds a {type(state).__name__}, not a state_dict().")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_matching(model: nn.Module, state: Mapping[str, Tensor], source: str) -> str:
    """Copies into `model` every tensor of `state` that has the name and shape of one of its own.

    If no name fits and the model has a `backbone`, `state` is taken for that of a backbone alone.
    Returns one sentence on what was left out, "" if nothing was; `source` names the weights in it.

    Raises UserError if nothing fits.
    """
    target = model
    if not _matching(target, state) and hasattr(model, "backbone"):
        target = model.backbone
    own, fitting = target.state_dict(), _matching(target, state)
    if not fitting:
        raise UserError(
            f"{source} has no tensor with the name and shape of one of this model: it belongs to "
            "another one; check --model and --backbone."
        )
    target.load_state_dict(fitting, strict=False)

    reshaped = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in state and key not in fitting
    ]
    missing = sum(key not in state for key in model.state_dict()) if target is model else 0
    parts = [*reshaped[:4], *([f"and {len(reshaped) - 4} more"] if len(reshaped) > 4 else [])]
    if missing:
        parts.append(f"{missing} tensors of the model are not in it")
    if unknown := sum(key not in own for key in state):
        parts.append(f"{unknown} of its tensors are not in the model")
    return (
        f"{source}: loaded {len(fitting)} tensors; left out: {'; '.join(parts)}." if parts else ""
    )


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a file's weights and logs what did not fit, e.g. the head of other classes."""
    report = load_matching(model, read_weights(path), f"--weights {path}")
    if report:
        logger.warning(report)


def refuse_incomplete(model: nn.Module, path: str | Path) -> None:
    """Raises UserError if the file leaves a part of `model` as it was initialised."""
    own = model.state_dict()
    given = _matching(model, read_weights(path))
    left = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    if left:
        raise UserError(
            f"--weights {path} doesn't hold all of this model ({len(left)} tensors are left at "
            f"random, the first is {left[0]}), so there is nothing to evaluate; check --model, "
            "--backbone and the data set's classes."
        )


@contextmanager
def downloading(what: str) -> Iterator[None]:
    """Turns a failed download of `what` into a UserError that says what to do without network."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"can't fetch {what} ({reason}): check the network, or bring the file from a machine "
            "that has one and pass --weights PATH, or train from scratch with --weights none."
        ) from error


def _matching(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = module.state_dict()
    return {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
