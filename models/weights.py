"""Weights from files, into models that need not fit them entirely."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from errors import UserError
from models.find_weights import NAMED_WEIGHTS, find_weights

logger = logging.getLogger(__name__)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of another file by ``torch.load(weights_only=True)``.

    ``path`` may also be what else ``find_weights`` takes.

    They are also found in the dictionaries that training scripts save, under "model" or
    "state_dict". The prefixes of DistributedDataParallel and ``torch.compile`` are removed.

    Raises:
        UserError: there is no such file, or no weights can be read from it.
    """
    path = find_weights(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any type: the file may hold anything
        raise UserError(
            f"{path} can't be read as weights: it is damaged, or a .pth file that holds more than "
            "tensors; save the model's state_dict() alone, preferably as .safetensors."
        ) from error

    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise UserError(
            f"{path} holds a {type(state).__name__} and no weights: save the model's state_dict() "
            "there."
        )
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for key, value in tensors.items():
        _refuse_unusable(path, key, value)
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _refuse_unusable(path: Path, key: str, value: Tensor) -> None:
    what = ""
    if value.is_meta:
        what = "has a shape but no values"
    elif value.layout != torch.strided or value.is_quantized or value.is_nested:
        what = "is sparse, nested or quantised"
    elif value.is_floating_point() and not value.double().isfinite().all():  # also of 8 bits
        what = "holds values that are not finite"
    if what:
        raise UserError(f"{path} can't be used as weights: its tensor {key} {what}.")


def load_matching(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy into ``model`` every tensor that has the name and the shape of one of its own.

    If no tensor fits and the model has a ``backbone``, the weights are taken for those of a
    backbone alone. One sentence in the log says what was left out, such as the head for other
    classes.

    Args:
        model: takes the weights.
        state: tensors by name.
        source: what messages call the weights.

    Raises:
        UserError: nothing fits.
    """
    target = model
    if not _matching(target, state) and hasattr(model, "backbone"):
        target = model.backbone
    own, fitting = target.state_dict(), _matching(target, state)
    if not fitting:
        raise UserError(
            f"{source} has no tensor with the name and shape of one of this model: the weights "
            "belong to another one; check the model and its backbone."
        )
    target.load_state_dict(fitting, strict=False)

    reshaped = [
        f"{key} is {tuple(state[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in state and key not in fitting
    ]
    parts = [*reshaped[:4], *([f"{len(reshaped) - 4} more"] if len(reshaped) > 4 else [])]
    missing = sum(key not in state for key in own) if target is model else 0
    if missing:
        parts.append(f"{missing} tensors of the model are not in it")
    if unknown := sum(key not in own for key in state):
        parts.append(f"{unknown} of its tensors are not in the model")
    if parts:
        logger.warning(f"{source}: loaded {len(fitting)} tensors; left out: {'; '.join(parts)}.")


def load_weights(model: nn.Module, weights: str) -> None:
    """Load the file that ``weights`` names; nothing is loaded for one of ``NAMED_WEIGHTS``.

    What does not fit is logged: see ``load_matching``.

    Raises:
        UserError: the file can't be read, or nothing in it fits the model.
    """
    if weights not in NAMED_WEIGHTS:
        load_matching(model, read_weights(weights), weights)


def refuse_incomplete(model: nn.Module, path: str | Path) -> None:
    """Make sure that a file leaves no part of ``model`` as it was initialised.

    Raises:
        UserError: a tensor of the model is not in the file.
    """
    own = model.state_dict()
    given = _matching(model, read_weights(path))
    left = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    if left:
        raise UserError(
            f"{path} doesn't hold all of this model ({len(left)} tensors are left at random, the "
            f"first is {left[0]}), so there is nothing to evaluate; check the model, its backbone "
            "and the data set's classes."
        )


def _matching(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = module.state_dict()
    return {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
