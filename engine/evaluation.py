"""Exact evaluation: every sample once, whatever the number of processes."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from data.stream import SampleStream, sample_seed
from engine.collectives import from_main_process, gather_lists, sum_over_processes
from engine.loaders import Loading, eval_loader, precise_loader
from engine.options import CommonOptions
from engine.plan import Plan
from engine.stop import StopRequest
from engine.task import Batch, Task
from models.norm import average_running_stats, precise_bn


class Evaluator:
    """Evaluates unwrapped models over all processes; its loaders' workers start now.

    Args:
        accelerator: for its precision and this process's number.
        task: counts over batches and makes metrics of the counts.
        stream: of the training samples, for ``--precise_bn``.
        plan: the run's arithmetic.
        options: the run's options.
        loading: how batches are loaded.
        stop: checked before every batch.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        stream: SampleStream,
        plan: Plan,
        options: CommonOptions,
        loading: Loading,
        stop: StopRequest,
    ) -> None:
        self.accelerator, self.task, self.options, self.stop = accelerator, task, options, stop
        rank = accelerator.process_index
        self.loader = eval_loader(task, plan, rank, loading)
        self.precise_loader = None
        if options.precise_bn:
            # The first batches of the stream, always the same ones.
            end = options.precise_bn * plan.batch_size * plan.num_processes
            self.precise_loader = precise_loader(task, stream, plan, rank, end, loading)

    @property
    def loaders(self) -> tuple[DataLoader | None, ...]:
        """All loaders, whose workers the caller stops."""
        return self.loader, self.precise_loader

    def metrics(self, model: nn.Module, step: int) -> dict[str, float] | None:
        """Evaluate ``model``; its running statistics are first made those of all processes.

        A few collectives, all of them before or after the batches: processes needn't have equally
        many.

        Args:
            model: unwrapped, so that no process waits for another while it evaluates.
            step: optimizer steps done; seeds what is random in precise_bn's forward passes.

        Returns:
            The metrics over the whole validation data, or None if a process was asked to stop.
        """
        average_running_stats(model)
        if self.precise_loader:
            self._recompute_statistics(model, step)
        was_training = model.training
        model.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            tally = self.task.evaluate(model, self._batches())
        model.train(was_training)
        asked = tally.sums.new_tensor([float(self.stop.signum != 0)])
        total = sum_over_processes(torch.cat([tally.sums, asked]))
        if total[-1] > 0:
            return None
        records = [] if tally.records is None else gather_lists(tally.records)
        metrics = None
        if self.accelerator.is_main_process:
            metrics = self.task.metrics(total[:-1].cpu(), records)
        return from_main_process(metrics)

    def _batches(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.stop.beat()
            if self.stop.signum:
                return
            yield batch

    def _recompute_statistics(self, model: nn.Module, step: int) -> None:
        batches = (self.task.to_device(batch) for batch in self.precise_loader)
        # For dropout.
        torch.manual_seed(sample_seed(self.options.seed, step, self.accelerator.process_index))
        # A compiled graph has no place for the hooks that see the layers' input.
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            precise_bn(model.train(), batches, self.options.precise_bn, forward=self._forward)

    def _forward(self, model: nn.Module, batch: Batch) -> None:
        self.task.losses(model, batch, self.task.normalizers(batch))
