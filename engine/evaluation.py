"""Exact evaluation: every sample once, whatever the number of processes."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn

from engine.collectives import sum_over_processes
from engine.stop import StopRequest
from engine.task import Task


def evaluate(
    accelerator: Accelerator, task: Task, model: nn.Module, loader: Iterator, stop: StopRequest
) -> dict[str, float] | None:
    """Evaluate an unwrapped model over all processes (one collective, at the end).

    Args:
        accelerator: for its precision.
        task: computes sums over batches and metrics from the sums.
        model: unwrapped, so that no process waits for another while it evaluates.
        loader: this process's share of the validation data.
        stop: checked before every batch.

    Returns:
        The metrics over the whole validation data, or None if a process was asked to stop.
    """
    was_training = model.training
    model.eval()

    def batches() -> Iterator:
        for batch in loader:
            stop.beat()
            if stop.signum:
                return
            yield batch

    with torch.inference_mode(), accelerator.autocast():
        sums = task.evaluate(model, batches())
    model.train(was_training)
    asked = sums.new_tensor([float(stop.signum != 0)])
    total = sum_over_processes(torch.cat([sums, asked]))
    return None if total[-1] > 0 else task.metrics(total[:-1].cpu())
