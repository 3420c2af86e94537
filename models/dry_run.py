"""A trial pass of a network: whether an input fits, and which parameters the output depends on.

DistributedDataParallel waits for the gradient of every parameter that asks for one, so those on
which no output depends must not ask.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from errors import UserError


def dry_run(model: nn.Module, name: str, shape: tuple[int, ...], advice: str) -> None:
    """Make sure that ``model`` takes inputs of ``shape``, and freeze the parameters it doesn't use.

    Apart from that the model and the state of the random generators stay as they are.

    Args:
        model: maps (B, ``*shape``) to logits.
        name: what the message calls the model.
        shape: of one sample, (C, H, W) or (C, T, H, W).
        advice: what to do if it doesn't fit, the end of the message.

    Raises:
        UserError: the forward pass fails.
    """
    try:
        try:
            twin = _differentiated(model, shape, "meta")
        except Exception:  # of any type: whatever a network's code meets first
            if any(parameter.is_meta for parameter in model.parameters()):
                raise
            # Some networks branch on values, and on the meta device there are none.
            twin = _differentiated(model, shape, "cpu")
    except Exception as error:
        size = "x".join(map(str, shape[1:]))
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{name} can't take an input of {size} ({reason}): {advice}.") from error
    _freeze_like(model, twin)


def freeze_unused(model: nn.Module) -> None:
    """Turn off the gradient of an image network's parameters on which no output depends.

    HRNet, for example, ends in layers that only serve feature maps which DeepLabV3+ does not read.

    Args:
        model: maps (B, 3, H, W) to a dictionary of tensors.
    """
    _freeze_like(model, _differentiated(model, (3, 128, 128), "meta"))


def _freeze_like(model: nn.Module, twin: nn.Module) -> None:
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        mine.requires_grad_(other.grad is not None)


def _differentiated(model: nn.Module, shape: tuple[int, ...], device: str) -> nn.Module:
    """A copy of the model with the gradients of a backward pass.

    On the meta device it costs neither memory nor time: shapes and the graph are all there is.
    """
    twin = copy.deepcopy(model, _without_memory(model) if device == "meta" else {})
    twin = twin.to(device).train()
    with torch.random.fork_rng(devices=[]), torch.device(device):
        outputs = twin(torch.zeros(2, *shape))
        if not isinstance(outputs, Mapping):
            outputs = {"out": outputs}
        sum(output.sum() for output in outputs.values()).backward()
    return twin


def _without_memory(model: nn.Module) -> dict[int, torch.Tensor]:
    """For ``copy.deepcopy``: a tensor on the meta device in place of each tensor of a model."""
    twins: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        like = torch.empty_like(parameter, device="meta")
        twins[id(parameter)] = nn.Parameter(like, parameter.requires_grad)
    for buffer in model.buffers():
        twins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return twins
