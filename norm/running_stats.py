"""Running statistics that are equal on all ranks: recomputed (``precise_bn``) or averaged."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import kernels
from .groups import find_group, gather, sum_over_ranks
from .layer import SyncBatchNorm


@contextmanager
def recorded_statistics(layers: list[_BatchNorm]) -> Iterator[list[Tensor | None]]:
    """Record, while active, the statistics of what enters each layer on this rank.

    Yields:
        A list that holds, per layer, [mean (C), biased variance (C), number of values (1)] in
        float64 over all values so far, or None before any.
    """
    rows: list[Tensor | None] = [None] * len(layers)

    def note(place: int) -> Callable[[nn.Module, tuple], None]:
        def hook(_layer: nn.Module, args: tuple) -> None:
            with torch.no_grad():
                new = kernels.local_statistics(kernels.dense(args[0])).double()
                rows[place] = new if rows[place] is None else _joined(rows[place], new)

        return hook

    handles = [layer.register_forward_pre_hook(note(i)) for i, layer in enumerate(layers)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _joined(one: Tensor, other: Tensor) -> Tensor:
    mean, var, number = kernels.combine(torch.stack([one, other]))
    return torch.cat([mean, var, number.view(1)])


def joined_statistics(
    layers: list[_BatchNorm], rows: list[Tensor | None]
) -> list[tuple[Tensor, Tensor]]:
    """Join the ranks' rows of ``recorded_statistics``; one collective for all layers together.

    Returns:
        Per layer, every rank's row, (ranks, 2C+1), and [mean, biased variance, number of values]
        over all of them, (2C+1,). Bit-identical on all ranks.
    """
    filled = [
        torch.zeros(2 * layer.num_features + 1, dtype=torch.float64, device=_device(layers))
        if row is None
        else row
        for layer, row in zip(layers, rows, strict=True)
    ]
    group = find_group(None)
    flat = torch.cat(filled)
    gathered = flat.view(1, -1) if group is None else gather(flat, group)  # collective
    per_layer = gathered.split([len(row) for row in filled], dim=1)
    joined = []
    for ranks in per_layer:
        mean, var, number = kernels.combine(ranks)
        joined.append((ranks, torch.cat([mean, var, number.view(1)])))
    return joined


def _device(layers: list[_BatchNorm]) -> torch.device:
    for layer in layers:
        for tensor in (*layer.parameters(), *layer.buffers()):
            return tensor.device
    return torch.device("cpu")


@torch.no_grad()
def precise_bn(
    model: nn.Module,
    batches: Iterable[Any],
    num_batches: int,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> None:
    """Replace the running statistics by those over ``num_batches`` batches with the weights fixed.

    The mean and the variance of all values that enter a layer over all batches and ranks, each
    value with the same weight: batches of different size count by their size (Wu and Johnson, 2021,
    arXiv:2105.07576, section 3). The layers normalise by batch statistics meanwhile, as in
    training. Layers in evaluation mode (frozen) and those without running statistics are left
    alone, and so is num_batches_tracked. Bit-identical on all ranks, which have to make the call
    together; one collective beside those of SyncBatchNorm.

    Args:
        model: unwrapped, in training mode.
        batches: at least num_batches of them on every rank.
        num_batches: how many to run.
        forward: called as forward(model, batch); model(batch) by default.

    Raises:
        ValueError: no layer in training mode has running statistics, or there are fewer batches.
            The model is then as it was.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
    ]
    if not layers:
        raise ValueError("precise_bn needs a model in training mode that has BatchNorm layers.")
    saved = [[buffer.clone() for buffer in layer.buffers(recurse=False)] for layer in layers]
    done = 0
    try:
        with recorded_statistics(layers) as rows:
            for batch in islice(batches, num_batches):
                model(batch) if forward is None else forward(model, batch)
                done += 1
    finally:
        # The forwards have moved them.
        for layer, buffers in zip(layers, saved, strict=True):
            for buffer, value in zip(layer.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(value)
    if done < num_batches:
        raise ValueError(f"precise_bn needs {num_batches} batches and got {done}.")
    for layer, (_, joined) in zip(layers, joined_statistics(layers, rows), strict=True):
        mean, var, number = joined.split([layer.num_features, layer.num_features, 1])
        # A layer that no batch reached keeps what it had. As tensors: no value read on the host.
        reached = number > 0
        unbiased = var * (number / (number - 1).clamp(min=1))
        layer.running_mean.copy_(torch.where(reached, mean, layer.running_mean.double()))
        layer.running_var.copy_(torch.where(reached, unbiased, layer.running_var.double()))


@torch.no_grad()
def average_running_stats(model: nn.Module) -> None:
    """Replace running means and variances by their average over the ranks.

    For layers whose statistics differ between ranks: plain BatchNorm, and SyncBatchNorm in groups
    smaller than the world. Call it on all ranks, before evaluation and before saving. One
    collective for the whole model; none, and nothing changes, in one process or where every layer
    is synchronised over all ranks. num_batches_tracked stays as it is.
    """
    group = find_group(None)
    buffers = [
        buffer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and _drifts(layer)
        for buffer in (layer.running_mean, layer.running_var)
    ]
    if group is None or not buffers:
        return
    flat = torch.cat([buffer.double() for buffer in buffers])
    flat = sum_over_ranks(flat, group) / group.size  # collective
    for buffer, average in zip(buffers, flat.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(average)


def _drifts(layer: _BatchNorm) -> bool:
    if isinstance(layer, SyncBatchNorm):
        return layer.group_name is not None
    if isinstance(layer, nn.SyncBatchNorm):
        return layer.process_group is not None
    return True
