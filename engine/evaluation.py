"""Exact evaluation: every sample once, whatever the number of processes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.decode import SampleError
from data.stream import SampleStream
from engine.collectives import from_main_process, gather_lists, sum_over_processes
from engine.loaders import Loading, eval_loader, precise_loader
from engine.options import TrainingOptions
from engine.plan import Plan
from engine.randomness import counting_freely, naming_what_is_not_deterministic, seed_step
from engine.stop import StopRequest
from engine.task import Batch, Evaluation, Task
from errors import UserError
from norm import average_running_stats, precise_bn


class _StoppedError(Exception):
    """The processes have agreed to leave an evaluation."""


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
        options: TrainingOptions,
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

    def evaluate(self, model: nn.Module, step: int) -> Evaluation | None:
        """Evaluate ``model``; its running statistics are first made those of all processes.

        A few collectives, all of them before or after the batches: the processes need not have
        equally many. ``--precise_bn`` has equally many on all, and collectives between them.

        Args:
            model: unwrapped, so that no process waits for another while it evaluates.
            step: optimizer steps done; seeds what is random in precise_bn's forward passes.

        Returns:
            The metrics over the whole validation data, and on the main process their details; or
            None if a process was asked to stop, or there was nothing to score.
        """
        average_running_stats(model)
        try:
            if self.precise_loader:
                self._recompute_statistics(model, step)
        except _StoppedError:
            return None
        with self.inference(model):
            tally = self.task.evaluate(model, self._batches())
        sums, asked = _sum_over_processes(tally.sums, float(self.stop.signum != 0))
        if asked:
            return None
        records = [] if tally.records is None else gather_lists(tally.records)
        evaluation = self._score(sums, records) if self.accelerator.is_main_process else None
        metrics = from_main_process(evaluation and evaluation.metrics)
        return evaluation or (None if metrics is None else Evaluation(metrics))

    def _score(self, sums: dict[str, Tensor], records: list) -> Evaluation | None:
        try:
            return self.task.score(sums, records)
        except UserError as error:  # the others are told at the end
            self.stop.fail(error)
            return None

    @contextlib.contextmanager
    def inference(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model is in evaluation mode, in the run's precision, without gradients."""
        was_training = model.training
        model.eval()
        with torch.inference_mode(), self.accelerator.autocast(), counting_freely():
            yield
        model.train(was_training)

    def _batches(self) -> Iterator[Any]:
        try:
            for batch in self.loader:
                self.stop.beat()
                if self.stop.signum:
                    return
                yield batch
        except SampleError as error:  # this process's own: the others are told at the end
            self.stop.fail(error)

    def _batches_in_step(self) -> Iterator[Any]:
        """The batches of ``--precise_bn``, whose forward passes may be collective.

        Before each the processes agree to go on: one collective and device sync.

        Raises:
            _StoppedError: on all processes, if one was asked to stop or can't read a file.
        """
        batches = iter(self.precise_loader)
        for _ in range(self.options.precise_bn):
            self.stop.beat()
            try:
                batch = next(batches)
            except SampleError as error:
                self.stop.fail(error)
            asked = torch.tensor(float(self.stop.signum != 0), device=self.accelerator.device)
            if sum_over_processes(asked):
                raise _StoppedError
            yield batch

    def _recompute_statistics(self, model: nn.Module, step: int) -> None:
        batches = (self.task.to_device(batch) for batch in self._batches_in_step())
        accelerator = self.accelerator
        seed_step(self.options.seed, step, accelerator.process_index, accelerator.device)
        # A compiled graph has no place for the hooks that see the layers' input.
        with (
            self.accelerator.autocast(),
            torch.compiler.set_stance("force_eager"),
            naming_what_is_not_deterministic(),
        ):
            precise_bn(model.train(), batches, self.options.precise_bn, forward=self._forward)

    def _forward(self, model: nn.Module, batch: Batch) -> None:
        # Only the forward pass counts: any denominator will do.
        images = torch.ones((), dtype=torch.float64, device=self.accelerator.device)
        self.task.losses(model, batch, {"images": images, **self.task.denominators(batch)})


def _sum_over_processes(sums: dict[str, Tensor], flag: float) -> tuple[dict[str, Tensor], bool]:
    """Named sums over all processes, on the CPU, and whether any raised the flag.

    One collective, one device sync.
    """
    first = next(iter(sums.values()))
    parts = [*(value.flatten() for value in sums.values()), first.new_full((1,), flag)]
    total = sum_over_processes(torch.cat(parts)).cpu().split([part.numel() for part in parts])
    named = zip(sums.items(), total, strict=False)  # the flag comes last
    return {name: part.view(value.shape) for (name, value), part in named}, bool(total[-1] > 0)
