"""The training loop, the same for every task.

    for each optimizer step:
        load its micro-batches       the next entries of the stream of samples
        sum the denominators         one small collective where only the batches can tell them
        forward and backward         gradients are exchanged after the last micro-batch only
        sum losses and stop flags    one small collective
        step, average the weights
        now and then: log, evaluate, save

k processes with batch b compute what one computes with batch k*b. All state between two steps is
in the checkpoint: weights, averaged weights, optimizer, loss scale and the step's number.
"""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch import nn

from data.stream import SampleStream
from engine.checkpoint import weights_bytes
from engine.evaluation import Evaluator
from engine.launch import close
from engine.loaders import Loading, count_workers, stop_workers, train_batches
from engine.loss_buffer import LossBuffer, StepRecord
from engine.optim import all_finite, create_ema, create_optimizer, lr_schedule
from engine.options import TrainingOptions
from engine.plan import Plan
from engine.rehearsal import compare_with_eager
from engine.report import Report, Stopwatch, peak_memory_bytes, profiler
from engine.resume import claim_folder, find_checkpoint, read_checkpoint
from engine.run_folder import write_atomically
from engine.state import Progress, State
from engine.step import OptimizerStep
from engine.stop import StopRequest
from engine.task import Batch, Task
from errors import UserError
from models.weights import NAMED_WEIGHTS, refuse_incomplete
from norm import (
    Disagreement,
    NormChoice,
    average_running_stats,
    rank_disagreement,
)

# Samples named when a loss is not finite.
NAMED_SAMPLES = 8


class Trainer:
    """One run: claims the folder, resumes, trains, evaluates, saves.

    Args:
        accelerator: from ``engine.launch.create_accelerator``.
        task: the script's task.
        model: on the device, its normalisation layers already converted.
        norm: which normalisation was chosen and why, for the summary.
        plan: the run's arithmetic.
        options: the script's options.

    Raises:
        UserError: the folder is another run's, or the checkpoint another training's.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        norm: NormChoice,
        plan: Plan,
        options: TrainingOptions,
    ) -> None:
        self.accelerator, self.task, self.norm, self.options = accelerator, task, norm, options
        self.plan = plan
        ranks = options.sync_bn_group_size or self.plan.num_processes
        self.identity = {
            "global_batch_size": self.plan.global_batch_size,
            "train_samples": len(task.train_data),
            # In one process BatchNorm is what SyncBatchNorm is in several.
            "norm": "sync_bn" if norm.kind == "bn" and self.plan.num_processes == 1 else norm.kind,
            "samples_per_statistic": {
                "bn": self.plan.batch_size,
                "sync_bn": self.plan.batch_size * ranks,
            }.get(norm.kind),
            "precision": accelerator.mixed_precision,
            **task.description,
        }
        if options.precise_bn and norm.kind not in ("bn", "sync_bn"):
            raise UserError(
                f"--precise_bn recomputes BatchNorm's statistics, and with --norm {norm.kind} this "
                "model has none; leave it out."
            )
        self.learning_rate = lr_schedule(options, self.plan.total_steps, self.plan.peak_lr)
        self.stream = SampleStream(len(task.train_data), options.seed)
        self.folder, self.path = claim_folder(accelerator, task.name, options)

        # The order matters: the averaged copy is taken of the plain model, weights are loaded
        # before DDP compares them, and DDP wraps the compiled model.
        ema = create_ema(model, options.ema)
        optimizer = create_optimizer(model, options)
        self.state = State(model, ema, optimizer, accelerator.scaler, Progress())
        checkpoint = find_checkpoint(accelerator, options, self.path)
        self.saved_step = -1
        if options.eval_only and not checkpoint and options.weights not in NAMED_WEIGHTS:
            refuse_incomplete(model, options.weights)
        if checkpoint:
            self.state.restore(read_checkpoint(checkpoint, options, self.identity))
            self.saved_step = self.state.progress.step
            if not (self.path / "best.safetensors").exists():  # a new folder has no best weights
                self.state.progress.best = {}
        self.first_step = self.state.progress.step
        self.stop = StopRequest()
        self.train_batches, self.evaluator = self._start_loaders()

        if options.compile:
            model.compile()
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        self.step = OptimizerStep(accelerator, task, wrapped, optimizer, self.state, plan, options)

        if self.folder and not options.eval_only:
            self.folder.write_options(options)
        done, total = self.state.progress, self.plan.total_steps
        self.report = Report(
            accelerator,
            self.folder,
            options,
            task.best_metric,
            done.step,
            total,
            done.evaluated_step,
        )
        if checkpoint:
            self.report.say(f"Continuing from {checkpoint}.")
        self.stop.install()
        self.losses = LossBuffer()
        self.total, self.lap = Stopwatch(), Stopwatch()
        self.disagreement: Disagreement | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and saved as the best: averaged, unwrapped."""
        return self.state.ema.module if self.state.ema else self.state.model

    def _start_loaders(self) -> tuple[Iterator[Batch], Evaluator]:
        """Training batches from here to the end, and what evaluates; all workers start now."""
        options, plan, rank = self.options, self.plan, self.accelerator.process_index
        workers = count_workers(options.num_workers, len(self.task.train_data))
        loading = Loading(workers, self.accelerator.device.type == "cuda")
        start = self.state.progress.step * plan.global_batch_size
        stop = start if options.eval_only else plan.total_samples
        train = train_batches(self.task, self.stream, plan, rank, start, stop, loading)
        return train, Evaluator(
            self.accelerator, self.task, self.stream, plan, options, loading, self.stop
        )

    def fit(self) -> int:
        """Train to the end, or only evaluate with ``--eval_only``.

        Returns:
            The exit status: 0, or 128 + signal after a stop by SIGTERM or SIGINT.
        """
        started = time.monotonic()
        try:
            signum = self._evaluate() if self.options.eval_only else self._train()
            if signum:
                if not self.options.eval_only:
                    with self.stop.busy():
                        self._save()
                name = signal.Signals(signum).name
                self.report.say(f"Stopped by {name}; --resume auto continues.")
            self._finish(time.monotonic() - started)
        finally:
            stop_workers(self.train_batches, *self.evaluator.loaders)
            self.stop.close()
            self.report.close()
        close(self.accelerator)
        return 128 + signum if signum else 0

    def _train(self) -> int:
        """Train; returns 0 at the end or the signal that all processes agreed to stop for."""
        progress = self.state.progress
        signum = self._settle() if progress.step else 0  # what an interrupted part left undone
        with profiler(self.options.profile, self.folder) as profile_step:
            while progress.step < self.plan.total_steps and not signum:
                self._train_step()
                profile_step()
                signum = self._read_losses() or self._settle()
        return signum

    def _train_step(self) -> None:
        """One optimizer step; nothing in it waits for the device."""
        progress, plan = self.state.progress, self.plan
        step = progress.step
        micro_batches = [self._next_batch() for _ in range(plan.grad_accum)]
        if self.options.compile and step == self.first_step:
            half = self.accelerator.mixed_precision != "no"
            precision = "half" if half else "double" if self.options.double else "single"
            compare_with_eager(self.step, self.state.model, micro_batches, step, precision)
        progress.step += 1
        found = self.step(
            micro_batches,
            step,
            lr=self.learning_rate(step),
            signum=self.stop.signum,
            measure_gradient=self._log_due() or self._save_due(),
            around_last=self._probe(),
        )
        self.losses.add(progress.step, *found)
        self.stop.beat()
        for watch in (self.lap, self.total):
            watch.samples += plan.global_batch_size

    def _next_batch(self) -> Batch:
        """The next micro-batch, on the device; the time spent waiting for it is counted."""
        before = time.monotonic()
        batch = next(self.train_batches)
        waited = time.monotonic() - before
        self.lap.waited += waited
        self.total.waited += waited
        return self.task.to_device(batch)

    @contextlib.contextmanager
    def _probe(self) -> Iterator[None]:
        """In the step before an evaluation, measure how far the processes' batches disagree."""
        if not self._eval_due() or self.plan.num_processes == 1 or self.options.compile:
            yield
            return
        with rank_disagreement(self.state.model) as probe:  # one collective, one device sync
            yield
        if probe.result.layers:
            self.disagreement = probe.result

    def _log_due(self) -> bool:
        return self.plan.due(self.plan.log_every, self.state.progress.step)

    def _eval_due(self) -> bool:
        return self.plan.due(self.plan.eval_every, self.state.progress.step)

    def _save_due(self) -> bool:
        return self.plan.due(self.plan.checkpoint_every, self.state.progress.step)

    def _read_losses(self) -> int:
        """Look at the losses of the steps since the last look, and log the newest.

        On a GPU this waits for the device, so it is done only every ``--log_every`` steps and
        before evaluating or saving.

        Returns:
            The signal for which all processes have agreed to stop, or 0.

        Raises:
            UserError: a loss is not finite.
        """
        on_cpu = self.accelerator.device.type == "cpu"
        step = self.state.progress.step
        if not (on_cpu or self._log_due() or self._eval_due() or self._save_due()):
            return 0
        records = self.losses.read()
        for record in records:
            # The loss scaler of fp16 expects gradients that overflow, and leaves those steps out.
            if not (record.is_finite and (self.state.scaler or record.has_finite_gradient)):
                raise UserError(self._non_finite(record))
        newest = records[-1]
        if self._log_due():
            names = {f"loss_{name}": value for name, value in newest.parts.items()}
            samples = self.plan.global_batch_size
            values = {
                "loss": sum(newest.parts.values()),
                **(names if len(names) > 1 else {}),
                **{f"{name}_per_image": n / samples for name, n in newest.counts.items()},
                "lr": self.learning_rate(step - 1),
                "grad_norm": newest.grad_norm,
                **self.lap.reading(),
                "memory_bytes": peak_memory_bytes(self.accelerator.device),
            }
            self.report.train(step, step * samples, values)
            self.lap = Stopwatch()
        self.report.advance(step)
        return newest.signum

    def _non_finite(self, record: StepRecord) -> str:
        indices = self.stream.step_indices(record.step - 1, self.plan.global_batch_size)
        names = [self.task.train_data.name(index) for index in indices[:NAMED_SAMPLES]]
        more = len(indices) - len(names)
        what = "gradient" if record.is_finite else "loss"
        return (
            f"The {what} is not finite at step {record.step} "
            f"({', '.join(f'{name} {value}' for name, value in record.parts.items())}) for the "
            f"samples {', '.join(names)}{f' and {more} more' if more else ''}; lower --lr, add "
            f"--warmup_steps or --clip_grad 1, or look at these samples. The checkpoints in "
            f"{self.path} are of earlier steps."
        )

    def _settle(self) -> int:
        """Evaluate and save where it is due; also makes up for what a stop left undone."""
        before = time.monotonic()
        progress = self.state.progress
        signum = 0
        with self.stop.busy():
            evaluates = self._eval_due() and progress.evaluated_step != progress.step
            if evaluates:
                signum = self._evaluate()
            changed = evaluates or self.saved_step != progress.step
            if self._save_due() and not signum and changed:
                self._save()
                # Else the others would seem hung, in the next step, while the main process saves.
                self.accelerator.wait_for_everyone()
        pause = time.monotonic() - before
        for watch in (self.lap, self.total):
            watch.start += pause  # neither training nor waiting for data
        return signum

    def _evaluate(self) -> int:
        """Evaluate, record, keep the best; returns the signal if it was interrupted."""
        evaluation = self.evaluator.evaluate(self.eval_model, self.state.progress.step)
        if evaluation is None:
            return self.stop.signum or signal.SIGTERM
        progress, metrics = self.state.progress, evaluation.metrics
        progress.metrics, progress.evaluated_step = metrics, progress.step
        samples = progress.step * self.plan.global_batch_size
        score = self.task.best_metric
        if self.disagreement:
            self.report.disagreement(progress.step, self.disagreement)
        self.report.evaluation(progress.step, samples, metrics)
        if self.folder:
            with self.evaluator.inference(self.eval_model):
                figures = self.task.figures(self.eval_model, evaluation.details)
            self.report.figures(progress.step, figures)
        if metrics[score] > progress.best.get(score, -math.inf):
            progress.best = {"step": progress.step, **metrics}
            if self.folder and not self.options.eval_only:
                weights = weights_bytes(self.eval_model.state_dict())
                write_atomically(self.path / "best.safetensors", weights)
        return 0

    def _save(self) -> None:
        """Write a checkpoint (main process); plain BatchNorm averages its statistics first.

        Raises:
            UserError: the weights are not finite, or the disk is full.
        """
        if not all_finite(self.state.model):  # device sync
            raise UserError(
                f"The weights are not finite after step {self.state.progress.step} and were not "
                "saved; lower --lr, or add --warmup_steps or --clip_grad 1."
            )
        average_running_stats(self.state.model)
        if self.state.ema:
            average_running_stats(self.state.ema.module)
        if self.folder:
            self.state.save(self.path, self.options, self.identity)
        self.saved_step = self.state.progress.step

    def _finish(self, seconds: float) -> None:
        """Write summary.json and say where everything is."""
        progress = self.state.progress
        summary: dict[str, Any] = {
            "task": self.task.name,
            "model": self.options.model,
            "dataset": self.options.dataset,
            "norm": {
                "kind": self.norm.kind,
                "reason": self.norm.reason,
                "disagreement": self.disagreement and self.disagreement.share,
                "advice": self.disagreement and self.disagreement.advice,
            },
            "world_size": self.plan.num_processes,
            "device": str(self.accelerator.device),
            "global_batch_size": self.plan.global_batch_size,
            "steps": progress.step,
            "metrics": {"best": progress.best, "last": progress.metrics},
            **self.total.reading(),
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
        }
        self.report.conclude(summary)
