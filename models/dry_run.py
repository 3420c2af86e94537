"""Trying a network on an input's shape: whether it fits, and which parameters the output needs."""

import copy

import torch
from torch import nn

from errors import UserError


def dry_run(model: nn.Module, name: str, shape: tuple[int, ...], advice: str) -> None:
    """Make sure that `model` takes inputs of `shape`, and freeze the parameters it doesn't use.

    DistributedDataParallel waits for the gradient of every parameter that asks for one, so those
    on which no logit depends must not ask. The model itself is left untouched otherwise.

    Args:
        model: maps (B, *shape) to logits.
        name: what the message calls it.
        shape: of one sample, (C, H, W) or (C, T, H, W).
        advice: what to do if it doesn't fit, the end of the message.

    Raises:
        UserError: the forward pass fails.
    """
    twin = _differentiated(model, shape, "meta")
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if isinstance(twin, Exception) and not on_meta:
        # Some networks branch on values, and on the meta device there are none.
        twin = _differentiated(model, shape, "cpu")
    if isinstance(twin, Exception):
        size = "x".join(map(str, shape[1:]))
        reason = str(twin).strip().partition("\n")[0].rstrip(".") or type(twin).__name__
        raise UserError(f"{name} can't take an input of {size} ({reason}): {advice}.") from twin
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        mine.requires_grad_(mine.requires_grad and other.grad is not None)


def freeze_unused(model: nn.Module) -> None:
    """Turn off the gradient of parameters of a network for pictures that no output depends on.

    HRNet, for example, ends in layers that only serve feature maps which DeepLabV3+ does not read.

    Args:
        model: maps (B, 3, H, W) to a dictionary of tensors.
    """
    twin = copy.deepcopy(model, _without_memory(model)).train()
    outputs = twin(torch.empty(2, 3, 128, 128, device="meta"))
    sum(output.sum() for output in outputs.values()).backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        mine.requires_grad_(other.grad is not None)


def _differentiated(model: nn.Module, shape: tuple[int, ...], device: str) -> nn.Module | Exception:
    """A copy of the model with gradients, or why it has none.

    On the meta device it costs neither memory nor time: shapes and the graph are all there is.
    """
    try:
        twin = copy.deepcopy(model, _without_memory(model) if device == "meta" else {})
        twin = twin.to(device).train()
        with torch.random.fork_rng(devices=[]), torch.device(device):
            twin(torch.zeros(2, *shape)).sum().backward()
    except Exception as error:  # of any type: whatever a network's code meets first
        return error
    return twin


def _without_memory(model: nn.Module) -> dict[int, torch.Tensor]:
    """What deepcopy shall take for each tensor of a model: its like on the meta device."""
    twins: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        like = torch.empty_like(parameter, device="meta")
        twins[id(parameter)] = nn.Parameter(like, parameter.requires_grad)
    for buffer in model.buffers():
        twins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return twins
