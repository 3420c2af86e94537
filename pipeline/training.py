"""The training loop of a network that is cut over several processes.

All state between two steps is in the checkpoint: the uncut network's weights and momentum, by
name, and the step's number. So a run continues on another number of stages and pipelines too.
"""

import math
import signal
import time
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.nn import functional as F

from data.pixels import IMAGENET
from data.stream import SampleStream
from engine.checkpoint import Checkpoint, save_checkpoint, weights_bytes
from engine.collectives import from_main_process, sum_over_processes
from engine.launch import close
from engine.loaders import Loading, count_workers
from engine.loss_buffer import SIGNALS
from engine.optim import all_finite
from engine.report import Report, Stopwatch, peak_memory_bytes
from engine.resume import claim_folder, find_checkpoint, read_checkpoint
from engine.run_folder import write_atomically
from engine.state import Progress
from engine.stop import StopRequest
from engine.task import compute_dtype
from errors import UserError
from figures.confusion import confusion_figure
from pipeline.batches import Batch, PipelineBatches, PipelineKeys
from pipeline.cut import Cut, Stage
from pipeline.options import PipelineOptions
from pipeline.schedule import (
    Pipeline,
    Place,
    Times,
    gather_parts,
    ideal_bubble,
    measured_bubble,
)
from tasks.classification.dataset import EvalDataset, Reader, TrainDataset
from tasks.classification.metrics import ClassCounts, class_metrics
from tasks.classification.rows import ClassificationData
from tasks.classification.transforms import eval_transform, train_transform

BEST_METRIC = "top1"
METRICS = (BEST_METRIC, "top5", "loss")


class Training:
    """One process's part in a run: its stage, its share of the data, its optimizer.

    Args:
        accelerator: from ``engine.launch.create_accelerator``.
        options: the run's options.
        data: the data set.
        cut: of the whole network.
        place: of this process.
        stage: its layers, not yet on the device.

    Raises:
        UserError: the folder is another run's, or the checkpoint another training's.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: PipelineOptions,
        data: ClassificationData,
        cut: Cut,
        place: Place,
        stage: Stage,
    ) -> None:
        self.accelerator, self.options, self.cut, self.place = accelerator, options, cut, place
        self.device, self.classes = accelerator.device, data.classes
        self.dtype = compute_dtype(options.double)
        samples = len(data.train)
        self.total_steps = options.max_steps or math.ceil(
            options.epochs * samples / options.batch_size
        )
        self.eval_every = options.eval_every or max(1, samples // options.batch_size)
        self.checkpoint_every = options.checkpoint_every or self.eval_every
        self.identity = {
            "global_batch_size": options.batch_size,
            "train_samples": samples,
            "precision": accelerator.mixed_precision,
            "classes": data.classes,
        }
        self.folder, self.path = claim_folder(accelerator, "pipeline", options)

        self.stage = stage.to(self.device, self.dtype)
        part = options.batch_size // place.replicas // options.microbatches
        self.pipeline = Pipeline(
            self.stage,
            place,
            options.schedule,
            options.microbatches,
            *((part, *shape) for shape in cut.shapes(place.stage)),
            dtype=stage.compute_dtype or self.dtype,
            device=self.device,
        )
        self.optimizer = torch.optim.SGD(
            param_groups_weight_decay(self.stage, options.weight_decay),
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.momentum > 0,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=max(1, self.total_steps)
        )
        self.progress, self.saved_step = Progress(), -1
        checkpoint = find_checkpoint(accelerator, options, self.path)
        if checkpoint:
            self._restore(read_checkpoint(checkpoint, options, self.identity))
        self.stop = StopRequest()
        self.batches = self._start_batches(data)
        self.mean, self.std = IMAGENET.of_bytes(self.dtype, self.device, dims=2)

        if self.folder and not options.eval_only:
            self.folder.write_options(options)
        done = self.progress
        self.report = Report(
            accelerator,
            self.folder,
            options,
            BEST_METRIC,
            done.step,
            self.total_steps,
            done.evaluated_step,
        )
        if checkpoint:
            self.report.say(f"Continuing from {checkpoint}.")
        self.stop.install()
        self.losses: list[Tensor | None] = []  # since they were last read
        self.times = Times(0.0, 0.0)
        self.total, self.lap = Stopwatch(), Stopwatch()

    def _start_batches(self, data: ClassificationData) -> PipelineBatches:
        """Training batches from here to the end, and the validation data; workers start now."""
        options, size = self.options, self.cut.image_size
        ends = self.progress.step, self.total_steps
        stream = SampleStream(len(data.train), options.seed)
        train, val = (Reader(rows, len(self.classes)) for rows in (data.train, data.val))
        return PipelineBatches(
            TrainDataset(train, train_transform(size), options.seed),
            torch.tensor(data.train["label"][:]),
            PipelineKeys(stream, self.place, options.batch_size, options.microbatches, *ends),
            EvalDataset(val, eval_transform(size)),
            torch.tensor(data.val["label"][:]),
            self.place,
            Loading(count_workers(options.num_workers, len(train)), self.device.type == "cuda"),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take this stage's part of a checkpoint."""
        self.progress.restore(checkpoint.state)
        self.saved_step = self.progress.step
        has_best = (self.path / "best.safetensors").exists()
        if not from_main_process(has_best):  # a new folder has no best weights
            self.progress.best = {}
        names = self.stage.state_dict()
        self.stage.load_state_dict({name: checkpoint.model[name] for name in names})
        # Without gradients it changes nothing; the schedule expects it before its own steps.
        self.optimizer.step()
        for _ in range(self.progress.step):
            self.schedule.step()
        momentum = checkpoint.optimizer["momentum"]
        for name, parameter in self.stage.named_parameters():
            if name in momentum:
                self.optimizer.state[parameter]["momentum_buffer"] = momentum[name].to(self.device)

    def fit(self) -> int:
        """Train to the end, or only evaluate with ``--eval_only``.

        Returns:
            The exit status: 0, or 128 + signal after a stop by SIGTERM or SIGINT.
        """
        started, signum = time.monotonic(), 0
        try:
            if self.options.eval_only:
                self._evaluate()
            else:
                signum = self._train()
            if signum:
                self._save()
                name = signal.Signals(signum).name
                self.report.say(f"Stopped by {name}; --resume auto continues.")
            self._finish(time.monotonic() - started)
        finally:
            self.batches.close()
            self.stop.close()
            self.report.close()
        close(self.accelerator)
        return 128 + signum if signum else 0

    def _train(self) -> int:
        """Train; returns 0 at the end or the signal that all processes agreed to stop for."""
        batches, first, signum = self.batches.train(), self.progress.step + 1, 0
        if self.progress.step or not self.total_steps:
            self._settle()  # what an interrupted part left undone, or all there is to do
        while self.progress.step < self.total_steps and not signum:
            asked = time.monotonic()
            batch = next(batches)
            for watch in (self.lap, self.total):
                watch.waited += time.monotonic() - asked
                watch.samples += self.options.batch_size
            lr = self.optimizer.param_groups[0]["lr"]
            self._train_step(batch)
            if self.progress.step == first < self.total_steps:
                self.pipeline.take_times()  # the first step makes the connections
            signum = self._read_losses(lr)
            if not signum:
                self._settle()
        return signum

    def _train_step(self, batch: Batch) -> None:
        """One optimizer step."""
        try:
            self.losses.append(self.pipeline.step(*self._to_device(batch)))
        except RuntimeError as error:
            if "more than 1 value per channel" not in f"{error} {error.__cause__}":
                raise
            raise UserError(
                "A BatchNorm layer gets one value per channel in a micro-batch, which it can't "
                "normalise: use fewer --microbatches, a larger --batch_size or larger images."
            ) from None
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.stop.beat()

    def _to_device(self, batch: Batch) -> Batch:
        """Images to float (B, 3, H, W) with scaled pixels, labels as they are."""
        images, labels = batch
        if images is not None:
            images = images.to(self.device, non_blocking=True).to(self.dtype)
            images = (images - self.mean) / self.std
        return images, None if labels is None else labels.to(self.device, non_blocking=True)

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total_steps

    def _read_losses(self, lr: float) -> int:
        """Look at the losses since the last look (a collective), and log the newest with ``lr``.

        On a GPU this waits for the device, so it is done only to log, to evaluate and to save.

        Returns:
            The signal for which all processes have agreed to stop, or 0.

        Raises:
            UserError: a loss is not finite.
        """
        step, logs = self.progress.step, self._due(self.options.log_every)
        settles = self._due(self.eval_every) or self._due(self.checkpoint_every)
        if not (self.device.type == "cpu" or logs or settles):
            return 0
        missing = torch.zeros((), device=self.device)
        mine = torch.stack([missing if loss is None else loss for loss in self.losses]).double()
        flags = mine.new_tensor([float(self.stop.signum == signum) for signum in SIGNALS])
        sums = sum_over_processes(torch.cat([mine / self.place.replicas, flags])).tolist()
        losses, asked = sums[: len(mine)], sums[len(mine) :]
        self.losses.clear()
        for number, loss in enumerate(losses, start=step - len(losses) + 1):
            self._refuse_non_finite("loss", loss, number)
        if logs:
            values = {
                "loss": losses[-1],
                **self._bubble(),
                "lr": lr,
                **self.lap.reading(),
                "memory_bytes": peak_memory_bytes(self.device),
            }
            self.report.train(step, step * self.options.batch_size, values)
            self.lap = Stopwatch()
        self.report.advance(step)
        return next((signum for signum, n in zip(SIGNALS, asked, strict=True) if n), 0)

    def _refuse_non_finite(self, what: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"The {what} is {loss} at step {step}; lower --lr. The checkpoints in {self.path} "
                "are of earlier steps."
            )

    def _bubble(self) -> dict[str, float]:
        """The bubble since the last call (a collective)."""
        times = self.pipeline.take_times()
        self.times = Times(*map(sum, zip(self.times, times, strict=True)))
        bubble = measured_bubble(times, self.place, self.device)
        return {} if bubble is None else {"bubble": bubble}

    def _settle(self) -> None:
        """Evaluate and save where it is due; also makes up for what a stop left undone."""
        before, step = time.monotonic(), self.progress.step
        evaluates = self._due(self.eval_every) and self.progress.evaluated_step != step
        if evaluates:
            self._evaluate()
        if self._due(self.checkpoint_every) and (evaluates or self.saved_step != step):
            self._save()
        pause = time.monotonic() - before
        for watch in (self.lap, self.total):
            watch.start += pause  # neither training nor waiting for data

    def _evaluate(self) -> None:
        """Score the whole validation data, and keep the best weights (a few collectives)."""
        progress, counts = self.progress, ClassCounts(len(self.classes), self.device)
        for batch in self.batches.validation():
            self.stop.beat()
            images, labels = self._to_device(batch)
            logits = self.pipeline.predict(images)
            if logits is not None:
                logits = logits[: len(labels)].to(self.dtype)
                counts.add_hits(logits, labels)
                counts.sums["loss"] += F.cross_entropy(logits, labels, reduction="sum")
        for value in counts.sums.values():
            sum_over_processes(value)
        scores = class_metrics(counts.sums, self.classes)
        metrics = {name: scores[name] for name in METRICS if name in scores}
        self._refuse_non_finite("validation loss", metrics["loss"], progress.step)
        progress.metrics, progress.evaluated_step = metrics, progress.step
        self.report.evaluation(progress.step, progress.step * self.options.batch_size, metrics)
        if self.folder:
            figure = confusion_figure(counts.sums["confusion"], self.classes)
            self.report.figures(progress.step, {"confusion": figure})
        if metrics[BEST_METRIC] > progress.best.get(BEST_METRIC, -math.inf):
            progress.best = {"step": progress.step, **metrics}
            weights = gather_parts(self.stage.state_dict(), self.place)
            if self.folder and not self.options.eval_only:
                write_atomically(self.path / "best.safetensors", weights_bytes(weights))

    def _save(self) -> None:
        """Write a checkpoint of the uncut network (a few collectives).

        Raises:
            UserError: the weights are not finite, or the disk is full.
        """
        bad = torch.tensor(float(not all_finite(self.stage)), device=self.device)
        if sum_over_processes(bad):
            raise UserError(
                f"The weights are not finite after step {self.progress.step} and were not saved; "
                "lower --lr."
            )
        with self.stop.busy():
            weights = gather_parts(self.stage.state_dict(), self.place)
            momentum = {
                name: self.optimizer.state[parameter]["momentum_buffer"]
                for name, parameter in self.stage.named_parameters()
                if "momentum_buffer" in self.optimizer.state[parameter]
            }
            momentum = gather_parts(momentum, self.place)
            if self.folder:
                state = self.progress.to_checkpoint(self.options, self.identity)
                checkpoint = Checkpoint(weights, None, {"momentum": momentum}, state)
                save_checkpoint(
                    self.path / "checkpoints", checkpoint, self.options.keep_checkpoints
                )
            # Else the others would seem hung, in the next step, while the main process saves.
            self.accelerator.wait_for_everyone()
        self.saved_step = self.progress.step

    def _finish(self, seconds: float) -> None:
        """Write summary.json and say where everything is (a few collectives)."""
        options, place = self.options, self.place
        self._bubble()
        bubble = {
            "measured": measured_bubble(self.times, place, self.device),
            "ideal": ideal_bubble(place.stages, options.microbatches),
            "step_seconds": self.times.lasted,
        }
        memory = peak_memory_bytes(self.device)
        processes = gather_object([{"busy_seconds": self.times.busy, "peak_memory_bytes": memory}])
        reason = "The copies of a stage normalise together."
        if place.replicas == 1:
            reason = "Each stage is on one process only."
        summary: dict[str, Any] = {
            "task": "pipeline",
            "model": options.model,
            "dataset": options.dataset,
            "norm": {
                "kind": "sync_bn" if place.replicas > 1 else "bn",
                "reason": reason,
                "advice": None,
            },
            "stages": self.cut.describe(),
            "schedule": options.schedule,
            "microbatches": options.microbatches,
            "world_size": place.stages * place.replicas,
            "replicas": place.replicas,
            "device": self.device.type,
            "global_batch_size": options.batch_size,
            "steps": self.progress.step,
            "metrics": {"best": self.progress.best, "last": self.progress.metrics},
            "bubble": bubble,
            "processes": processes,
            **self.total.reading(),
            "seconds": seconds,
            "peak_memory_bytes": max(each["peak_memory_bytes"] for each in processes),
        }
        self.report.conclude(summary)
        if bubble["measured"] is not None:
            self.accelerator.print(
                f"  bubble  {bubble['measured']:.1%} of the stages' time, "
                f"{bubble['ideal']:.1%} for stages of equal cost"
            )
