"""Training a network that is cut over several processes."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from data.masks import default_colors
from data.pixels import IMAGENET
from engine.about import About, compare_classes, data_of
from engine.collectives import sum_over_processes
from engine.inference import compute_dtype
from engine.loaders import Loading, count_workers
from engine.loop import Loop
from engine.loss_buffer import StepRecord, StepSums, signal_flags
from engine.optim import parameter_groups
from engine.plan import Plan
from engine.randomness import naming_what_is_not_deterministic
from engine.report import peak_memory_bytes
from engine.state import Progress
from engine.task import Evaluation, Losses
from errors import UserError
from figures.confusion import confusion_figure
from models.find_weights import NAMED_WEIGHTS, find_weights
from pipeline.batches import Batch, PipelineBatches, PipelineKeys
from pipeline.cut import Cut, Stage
from pipeline.options import PipelineOptions
from pipeline.schedule import Pipeline, Place, Times, ideal_bubble, measured_bubble
from pipeline.state import PipelineState
from tasks.classification.dataset import EvalDataset, Reader, TrainDataset
from tasks.classification.inference import ClassificationInference
from tasks.classification.metrics import ClassCounts, class_metrics
from tasks.classification.options import ClassificationOptions
from tasks.classification.rows import ClassificationData
from tasks.classification.transforms import eval_transform, train_transform

METRICS = ("top1", "top5", "loss")


class PipelineTrainer(Loop):
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
        train, val = (Reader(rows, len(data.classes)) for rows in (data.train, data.val))
        train_data = TrainDataset(train, train_transform(cut.image_size), options.seed)
        plan = make_plan(options, len(train), place.replicas)
        identity = {"classes": data.classes}
        val_data = EvalDataset(val, eval_transform(cut.image_size))
        common = train_data, val_data, identity, plan, options
        super().__init__(accelerator, "pipeline", "top1", *common)
        self.cut, self.place, self.classes = cut, place, data.classes
        self.device, self.dtype = accelerator.device, compute_dtype(options.double)
        self.learning_rate = cosine(options.lr, plan.total_steps).__getitem__

        stage.to(self.device, self.dtype)
        optimizer = torch.optim.SGD(
            parameter_groups(stage, options.weight_decay),
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.momentum > 0,
        )
        checkpoint = self._resume(PipelineState(stage, None, optimizer, None, Progress(), place))
        if not checkpoint and options.weights not in NAMED_WEIGHTS:
            path, say = find_weights(options.weights), accelerator.print
            compare_classes(path, "classification", data.classes, options, say)
        self.first_step = self.state.progress.step
        self.pipeline = Pipeline(
            stage,
            place,
            options.schedule,
            options.microbatches,
            *((plan.batch_size, *shape) for shape in cut.shapes(place.stage)),
            dtype=stage.compute_dtype or self.dtype,
            device=self.device,
        )
        ends = self.first_step, plan.total_steps
        self.batches = PipelineBatches(
            train_data,
            torch.tensor(data.train["label"][:]),
            PipelineKeys(self.stream, place, options.batch_size, options.microbatches, *ends),
            val_data,
            torch.tensor(data.val["label"][:]),
            place,
            Loading(count_workers(options.num_workers, len(train)), self.device.type == "cuda"),
            options.size,
        )
        self.train_batches, self.loaders = self.batches.train(), self.batches.loaders
        self.mean, self.std = IMAGENET.of_bytes(self.dtype, self.device, dims=2)
        self.times = Times(0.0, 0.0)
        self._start(checkpoint)

    def _train_step(self) -> None:
        progress, optimizer = self.state.progress, self.state.optimizer
        images, labels = self._to_device(self._next_batch())
        try:
            with naming_what_is_not_deterministic():
                loss = self.pipeline.step(images, labels)
        except RuntimeError as error:
            if "more than 1 value per channel" not in f"{error} {error.__cause__}":
                raise
            raise UserError(
                "A BatchNorm layer gets one value per channel in a micro-batch, which it can't "
                "normalise: use fewer --microbatches, a larger --batch_size or larger images."
            ) from None
        sums = StepSums()
        loss = torch.zeros((), device=self.device) if loss is None else loss
        sums.add(Losses({"ce": loss.double() / self.place.replicas}))
        total = sums.over_processes(signal_flags(self.stop.signum, self.device))
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(progress.step)
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        self.losses.add(progress.step, total, None)
        if progress.step == self.first_step + 1 < self.plan.total_steps:
            self.pipeline.take_times()  # the first step makes the connections

    def _to_device(self, batch: Batch) -> Batch:
        """Images to float (B, 3, H, W) with scaled pixels, labels as they are."""
        images, labels = batch
        if images is not None:
            images = images.to(self.device, non_blocking=True).to(self.dtype)
            images = (images - self.mean) / self.std
        return images, None if labels is None else labels.to(self.device, non_blocking=True)

    def _about(self) -> About:
        inference = ClassificationInference(
            ClassificationOptions(
                model=self.options.model,
                image_size=list(self.options.size),
                **data_of(self.options),
            ),
            self.classes,
            default_colors(len(self.classes) + 1)[1:],
            self.device,
            IMAGENET,
        )
        done = self.state.progress
        return inference.about(self.state.model, "bn", done.step, done.metrics)

    def _measured(self, record: StepRecord) -> dict[str, float]:
        bubble = measured_bubble(self._take_times(), self.place, self.device)
        return {} if bubble is None else {"bubble": bubble}

    def _take_times(self) -> Times:
        """The times since the last call, which are added to those of the whole run."""
        times = self.pipeline.take_times()
        self.times = Times(*map(sum, zip(self.times, times, strict=True)))
        return times

    def _score(self) -> Evaluation | None:
        """Score the whole validation data (a few collectives); None if a file can't be read.

        The stages need each other for every batch, so none of them stops before the end.
        """
        counts = ClassCounts(len(self.classes), self.device)
        for batch in self.batches.validation(self.stop.fail):
            self.stop.beat()
            images, labels = self._to_device(batch)
            logits = self.pipeline.predict(images)
            if logits is not None:
                logits = logits[: len(labels)].to(self.dtype)
                counts.add_hits(logits, labels)
                counts.sums["loss"] += F.cross_entropy(logits, labels, reduction="sum")
        failed = torch.tensor(float(self.stop.error is not None), device=self.device)
        if sum_over_processes(failed):
            return None
        for value in counts.sums.values():
            sum_over_processes(value)
        scores = class_metrics(counts.sums, self.classes)
        if not math.isfinite(scores["loss"]):
            raise UserError(
                f"The validation loss is {scores['loss']} at step {self.state.progress.step}: "
                f"{self.remedies}. The weights were not saved."
            )
        metrics = {name: scores[name] for name in METRICS if name in scores}
        return Evaluation(metrics, counts.sums["confusion"])

    def _figures(self, details: Tensor) -> dict[str, Tensor]:
        return {"confusion": confusion_figure(details, self.classes)}

    def _summary(self) -> dict[str, Any]:
        """The cut and what it costs (a few collectives)."""
        self._take_times()
        place, memory = self.place, peak_memory_bytes(self.device)
        bubble = measured_bubble(self.times, place, self.device)
        ideal = ideal_bubble(place.stages, self.options.microbatches)
        if bubble is not None:
            self.report.say(
                f"The stages stood idle for {bubble:.1%} of the time (the bubble); for stages of "
                f"equal cost it is {ideal:.1%}."
            )
        processes = gather_object([{"busy_seconds": self.times.busy, "peak_memory_bytes": memory}])
        reason = "The copies of a stage normalise together."
        if place.replicas == 1:
            reason = "Each stage is on one process only."
        kind = "sync_bn" if place.replicas > 1 else "bn"
        return {
            "norm": {"kind": kind, "reason": reason, "advice": None},
            "stages": self.cut.describe(),
            "schedule": self.options.schedule,
            "microbatches": self.options.microbatches,
            "replicas": place.replicas,
            "bubble": {"measured": bubble, "ideal": ideal, "step_seconds": self.times.lasted},
            "processes": processes,
        }


def make_plan(options: PipelineOptions, num_samples: int, replicas: int) -> Plan:
    """The arithmetic of a run: a forward pass takes a micro-batch's part of a pipeline."""
    size = options.batch_size
    total = options.max_steps or math.ceil(options.epochs * num_samples / size)
    eval_every = options.eval_every or max(1, num_samples // size)
    return Plan(
        batch_size=size // replicas // options.microbatches,
        grad_accum=options.microbatches,
        num_processes=replicas,
        global_batch_size=size,
        total_steps=total,
        eval_every=eval_every,
        checkpoint_every=options.checkpoint_every or eval_every,
        log_every=options.log_every,
        peak_lr=options.lr,
    )


def cosine(start: float, steps: int) -> list[float]:
    """Learning rates that fall from ``start`` to 0 along half a cosine, one per step.

    Each is computed from the one before, as ``torch.optim.lr_scheduler.CosineAnnealingLR`` does.
    """
    rates = [start]
    for step in range(1, steps):
        now, before = (1 + math.cos(math.pi * s / steps) for s in (step, step - 1))
        rates.append(now / before * rates[-1])
    return rates
