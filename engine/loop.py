"""What every training loop does around its steps: resume, log, evaluate, save, stop.

    for each optimizer step:
        load its batches             the next entries of the stream of samples
        make the step                the subclass
        now and then: log, evaluate, save

All state between two steps is in the checkpoint, so a run that is killed at any moment continues as
if nothing had happened.
"""

import contextlib
import math
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from data.decode import SampleError
from data.stream import SampleStream
from engine.about import About
from engine.checkpoint import load_checkpoint
from engine.collectives import from_main_process, gather_lists
from engine.fingerprint import digests_of, record_data, to_bytes
from engine.launch import close
from engine.loaders import stop_workers
from engine.loss_buffer import LossBuffer, StepRecord
from engine.options import MOST_STEPS, CommonOptions
from engine.plan import Plan
from engine.report import Report, Stopwatch, peak_memory_bytes, profiler
from engine.resume import (
    claim_folder,
    compare_data,
    find_checkpoint,
    go_on_with_other_data,
    refuse_other_training,
    take_over_best,
)
from engine.run_folder import write_atomically
from engine.saving import Saver
from engine.state import Progress, State
from engine.stop import StopRequest
from engine.task import Evaluation
from errors import UserError

# Samples named when a loss is not finite.
NAMED_SAMPLES = 8


class Loop(ABC):
    """One run: claims the folder, resumes, trains, evaluates, saves.

    A subclass makes its model and optimizer, calls ``_resume``, starts its loaders, calls
    ``_start``, and implements the methods that are abstract here.

    Args:
        accelerator: from ``engine.launch.create_accelerator``.
        name: of the task.
        best_metric: the metric by which the best weights are chosen; higher is better.
        train_data: the training samples; ``name(index)`` is what a message calls one.
        val_data: the validation samples.
        identity: what must be the same when the run is resumed, beside the options.
        plan: the run's arithmetic.
        options: the script's options.

    Attributes:
        train_batches: an iterator over the training batches from here to the end.
        loaders: the loaders, or their iterators, whose workers end with the run.
        learning_rate: the learning rate of optimizer step s, from 0.
        remedies: what to try when a loss or the weights are not finite.

    Raises:
        UserError: the folder is another run's.
    """

    remedies = "lower --lr"

    def __init__(
        self,
        accelerator: Accelerator,
        name: str,
        best_metric: str,
        train_data: Any,
        val_data: Any,
        identity: dict[str, Any],
        plan: Plan,
        options: CommonOptions,
    ) -> None:
        self.accelerator, self.name, self.best_metric = accelerator, name, best_metric
        self.train_data, self.plan, self.options = train_data, plan, options
        self.identity = {
            "global_batch_size": plan.global_batch_size,
            "train_samples": len(train_data),
            "precision": accelerator.mixed_precision,
            **identity,
        }
        if plan.total_steps > MOST_STEPS:
            raise UserError(
                f"{plan.total_steps} steps are more than the {MOST_STEPS} that can be numbered; "
                "give fewer --epochs."
            )
        weights = getattr(train_data, "weights", None)
        self.stream = SampleStream(len(train_data), options.seed, weights)
        self.folder, self.path = claim_folder(accelerator, name, options)
        self.stop, self.losses, self.has_evaluated = StopRequest(), LossBuffer(), False
        self.ahead: deque[Any] = deque()  # batches that were loaded and not yet trained on
        data = train_data, val_data, options.data_dir, options.compare_contents
        self.record = record_data(accelerator, *data)
        digests = digests_of(self.record)
        writes = self.path if self.folder else None
        self.saver = Saver(writes, self.stop, options, self.identity, digests)

    def _resume(self, state: State) -> Path | None:
        """Restore the checkpoint that ``--resume`` asks for; returns its path.

        Raises:
            UserError: it is damaged, or another training's.
        """
        self.state = state
        accelerator, options = self.accelerator, self.options
        path = find_checkpoint(accelerator, options, self.path)
        if path:
            checkpoint = load_checkpoint(path)
            refuse_other_training(path, checkpoint.state, options, self.identity)
            digests = checkpoint.state.get("data")
            changed, self.record = compare_data(accelerator, path, digests, options, self.record)
            state.restore(checkpoint)
            take_over_best(self.path, state.progress)
            if changed and not options.eval_only:
                go_on_with_other_data(accelerator, self.path, state.progress, changed)
            elif path.resolve().parent == (self.path / "checkpoints").resolve():
                self.saver.saved_step = state.progress.step
        return path

    def _start(self, checkpoint: Path | None) -> None:
        """Open the records and receive signals; the loaders' workers have been started."""
        if self.folder and not self.options.eval_only:
            self.folder.write_options(self.options)
            write_atomically(self.path / "data.tsv", to_bytes(self.record))
        done = self.state.progress
        self.report = Report(
            self.accelerator,
            self.folder,
            self.options,
            self.best_metric,
            done.step,
            self.plan.total_steps,
            done.evaluated_step,
        )
        if checkpoint:
            self.report.say(f"Continuing from {checkpoint}.")
            if done.step >= self.plan.total_steps and not self.options.eval_only:
                total = self.plan.total_steps
                self.report.say(f"It has {done.step} of {total} steps: none is left to train.")
        elif self.options.resume == "auto":
            self.report.say(f"{self.path} holds no checkpoint yet: starting at step 0.")
        self.stop.install()
        if self.options.eval_only:
            done = Progress()
        samples = done.step * self.plan.global_batch_size
        self.lap = Stopwatch()
        self.total = Stopwatch(samples, done.training_seconds, done.waiting_seconds)
        self.begun = time.monotonic() - done.seconds

    @abstractmethod
    def _train_step(self) -> None:
        """Make one optimizer step, count it, and add its losses to the buffer."""

    @abstractmethod
    def _measured(self, record: StepRecord) -> dict[str, float]:
        """What else a log line holds (every process; a collective may be in it)."""

    @abstractmethod
    def _score(self) -> Evaluation | None:
        """The metrics over the validation data, or None if a process was asked to stop."""

    @abstractmethod
    def _figures(self, details: Any) -> dict[str, Tensor]:
        """The figures of an evaluation (main process)."""

    @abstractmethod
    def _about(self) -> About:
        """What the best weights have to say about themselves (main process)."""

    @abstractmethod
    def _summary(self) -> dict[str, Any]:
        """The part of summary.json that the subclass knows (every process)."""

    def fit(self) -> int:
        """Train to the end, or only evaluate with ``--eval_only``.

        Returns:
            The exit status: 0, or 128 + signal after a stop by SIGTERM or SIGINT.
        """
        progress, total = self.state.progress, self.plan.total_steps
        self.finished = self.saver.saved_step == progress.step == progress.evaluated_step == total
        try:
            signum = self._evaluate() if self.options.eval_only else self._train()
            if signum:
                if not self.options.eval_only:
                    with self.stop.busy():
                        self._save()
                        self.saver.writer.join()
                self._raise_any_error()
                name = signal.Signals(signum).name
                self.report.say(f"Stopped by {name}; --resume auto continues.")
            self.saver.writer.join()
            self.report.finish()
            self._finish()
        except BaseException:
            with contextlib.suppress(UserError):
                self.saver.writer.join()
            raise
        finally:
            stop_workers(*self.loaders)
            self.stop.close()
            self.report.close()
        close(self.accelerator)
        return 128 + signum if signum else 0

    def _train(self) -> int:
        """Train; returns 0 at the end or the signal that all processes agreed to stop for."""
        progress = self.state.progress
        # What an interrupted part left undone, or all there is to do.
        signum = self._settle() if progress.step or not self.plan.total_steps else 0
        with profiler(self.options.profile, self.folder) as profile_step:
            while progress.step < self.plan.total_steps and not signum:
                self._train_step()
                self.stop.beat()
                for watch in (self.lap, self.total):
                    watch.samples += self.plan.global_batch_size
                profile_step()
                self.saver.writer.check()
                signum = self._read_losses() or self._settle()
        return signum

    def _raise_any_error(self) -> None:
        """Raise, on every process, the error for which one of them has stopped (2 collectives)."""
        errors = gather_lists([str(self.stop.error)] if self.stop.error else [])
        if first := from_main_process(errors[0] if errors else None):
            raise UserError(first)

    def _next_batch(self) -> Any:
        """The next batch of the loader; the time spent waiting for it is counted.

        On the CPU, where the processes look at each other's stop flags at every step, a step's
        batches are loaded before the step before it: if a file of theirs can't be read, all stop
        with that step done and saved.
        """
        before = time.monotonic()
        on_cpu = self.accelerator.device.type == "cpu"
        while len(self.ahead) <= self.plan.grad_accum * on_cpu and not self.stop.error:
            try:
                self.ahead.append(next(self.train_batches))
            except StopIteration:
                break
            except SampleError as error:
                if not (self.ahead and on_cpu):
                    raise
                self.stop.fail(error)
        waited = time.monotonic() - before
        self.lap.waited += waited
        self.total.waited += waited
        if not self.ahead and self.stop.error:  # of this very step
            raise self.stop.error
        return self.ahead.popleft()

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
            if not (record.is_finite and (self.accelerator.scaler or record.has_finite_gradient)):
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
                **self._measured(newest),
                **self.lap.reading(),
                "memory_bytes": peak_memory_bytes(self.accelerator.device),
            }
            self.report.train(step, step * samples, values)
            self.lap = Stopwatch()
        self.report.advance(step)
        return newest.signum

    def _non_finite(self, record: StepRecord) -> str:
        indices = self.stream.step_indices(record.step - 1, self.plan.global_batch_size)
        names = [self.train_data.name(index) for index in indices[:NAMED_SAMPLES]]
        more = len(indices) - len(names)
        what = "gradient" if record.is_finite else "loss"
        return (
            f"The {what} is not finite at step {record.step} "
            f"({', '.join(f'{name} {value}' for name, value in record.parts.items())}) for the "
            f"samples {', '.join(names)}{f' and {more} more' if more else ''}; {self.remedies}, "
            f"or look at these samples. The checkpoints in {self.path} are of earlier steps."
        )

    def _settle(self) -> int:
        """Evaluate and save where it is due; also makes up for what a stop left undone."""
        before = time.monotonic()
        progress = self.state.progress
        signum = 0
        with self.stop.busy():
            evaluates = self._eval_due() and progress.evaluated_step != progress.step
            # Before the first evaluation in any case, since a bad file may end the run there.
            if self._save_due() or (evaluates and not self.has_evaluated):
                self._save()
                # Else the others would seem hung, in the next step, if the main process waits.
                self.accelerator.wait_for_everyone()
            if evaluates:
                signum = self._evaluate()
        pause = time.monotonic() - before
        for watch in (self.lap, self.total):
            watch.start += pause  # neither training nor waiting for data
        return signum

    def _evaluate(self) -> int:
        """Evaluate, record, keep the best; returns the signal if it was interrupted."""
        evaluation = self._score()
        if evaluation is None:
            return self.stop.signum or signal.SIGTERM
        self.has_evaluated = True
        progress, metrics = self.state.progress, evaluation.metrics
        progress.metrics, progress.evaluated_step = metrics, progress.step
        samples = progress.step * self.plan.global_batch_size
        best = None
        if metrics[self.best_metric] > progress.best.get(self.best_metric, -math.inf):
            progress.best = {"step": progress.step, **metrics}
            best = self.state.evaluated_weights()
        if not self.options.eval_only and self.folder:
            self.saver.save_evaluation(self.state, best, self._about())
        if self.folder:
            self.report.evaluation(progress.step, samples, metrics)
            self.report.figures(progress.step, self._figures(evaluation.details))
        return 0

    def _save(self) -> None:
        """Save what there is to save; see ``Saver.save``."""
        progress = self.state.progress
        progress.seconds = time.monotonic() - self.begun
        progress.training_seconds, progress.waiting_seconds = self.total.elapsed, self.total.waited
        self.saver.save(self.state, self.remedies)

    def _finish(self) -> None:
        """Write summary.json, unless the run was finished before, and say where everything is."""
        progress = self.state.progress
        summary = {
            "task": self.name,
            "model": self.options.model,
            "dataset": self.options.dataset,
            **self._summary(),
            "world_size": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "global_batch_size": self.plan.global_batch_size,
            "steps": progress.step,
            "metrics": {"best": progress.best, "last": progress.metrics},
            **self.total.reading(),
            "seconds": time.monotonic() - self.begun,
            "training_seconds": self.total.elapsed,
            "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
        }
        if progress.data_changed:
            summary["data_changed_after_steps"] = progress.data_changed
        self.report.conclude(summary, progress.evaluated_step, self.finished)
