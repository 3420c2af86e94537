"""Train one network cut over several devices, micro-batches passing through it in a pipeline.

    torchrun --nproc_per_node=2 train_pipeline.py
    accelerate launch --config_file accelerate_configs/2gpu.yaml train_pipeline.py

Every process holds one stage of the network. With --stages below the number of processes there are
several such pipelines, which train on different samples (data parallel). docs/pipeline.md tells
when this pays.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.launch import close, create_accelerator, read_options, run
from errors import UserError
from pipeline.options import PipelineOptions

if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(PipelineOptions, __doc__)

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.nn import functional as F

from data.pixels import IMAGENET
from engine.checkpoint import weights_bytes
from engine.collectives import sum_over_processes
from engine.loaders import count_workers
from engine.report import Report, Stopwatch, peak_memory_bytes
from engine.run_folder import RunFolder, default_path, write_atomically
from models.classification import build_classification_model
from norm import convert_norm
from pipeline.batches import PipelineBatches, Share
from pipeline.cut import Cost, Stage, Unit, costs_of, cut_at, cut_evenly, describe, units_of
from pipeline.schedule import (
    Pipeline,
    Place,
    Times,
    gather_weights,
    ideal_bubble,
    measured_bubble,
    take_place,
)
from tasks.classification.dataset import EvalDataset, Reader, TrainDataset
from tasks.classification.options import ClassificationOptions
from tasks.classification.rows import ClassificationData
from tasks.classification.sources import load_data as load_classification_data
from tasks.classification.transforms import eval_transform, train_transform

BEST_METRIC = "top1"


def count_stages(options: PipelineOptions, processes: int) -> int:
    """Stages per pipeline.

    Raises:
        UserError: processes or samples that don't divide.
    """
    stages = options.stages or (len(options.cuts) + 1 if options.cuts else processes)
    if processes % stages:
        raise UserError(
            f"{processes} process{'es' if processes > 1 else ''} can't form pipelines of {stages} "
            f"stages: launch {stages} or a multiple, as torchrun --nproc_per_node={stages} or "
            f"accelerate launch --num_processes {stages}, or give another --stages."
        )
    replicas = processes // stages
    parts = replicas * options.microbatches
    if options.batch_size % parts:
        below = options.batch_size // parts * parts
        near = f"{below} or {below + parts}" if below else f"{parts}"
        raise UserError(
            f"--batch_size {options.batch_size} does not divide into {replicas} pipeline"
            f"{'s' if replicas > 1 else ''} x {options.microbatches} micro-batches; use {near}."
        )
    if options.schedule == "1f1b" and options.microbatches < stages:
        raise UserError(
            f"--schedule 1f1b needs as many micro-batches as stages, and --microbatches is "
            f"{options.microbatches} for {stages} stages: use --microbatches {stages} or more, or "
            "--schedule gpipe."
        )
    return stages


def choose_cut(
    options: PipelineOptions, units: Sequence[Unit], costs: Sequence[Cost], stages: int
) -> list[slice]:
    """The units of each stage."""
    if options.cuts:
        starts = cut_at(units, options.cuts)
    else:
        starts = cut_evenly([getattr(cost, options.balance) for cost in costs], stages)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(units)], strict=True)]


def load_data(options: PipelineOptions) -> ClassificationData:
    """The data set's rows and classes; nothing is decoded yet."""
    return load_classification_data(
        ClassificationOptions(
            dataset=options.dataset,
            data_dir=options.data_dir,
            limit_train=options.limit_train,
            limit_val=options.limit_val,
            seed=options.seed,
            image_size=[options.image_size, options.image_size],
            image_column=options.image_column,
            label_column=options.label_column,
        )
    )


def claim_folder(accelerator: Accelerator, options: PipelineOptions) -> RunFolder | None:
    """Take the run's folder, on the main process.

    Raises:
        UserError: it holds another run, or can't be written.
    """
    if not accelerator.is_main_process:
        return None
    path = Path(options.output_dir or default_path("pipeline", options))
    folder = RunFolder(path, resume=False)
    folder.write_options(options)
    return folder


class Training:
    """One process's part in a run: its stage, its share of the data, its optimizer.

    Args:
        accelerator: joined with the other processes.
        options: the run's options.
        place: where this process stands.
        data: the data set.
        stage: its layers, not yet on the device.
        shapes: of one sample as this stage takes and returns it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        options: PipelineOptions,
        place: Place,
        data: ClassificationData,
        stage: Stage,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        self.options, self.place, self.device = options, place, accelerator.device
        self.classes = len(data.classes)
        self.dtype = torch.float64 if options.double else torch.float32
        batch_size, samples = options.batch_size // place.replicas, len(data.train)
        self.steps = options.max_steps or math.ceil(options.epochs * samples / options.batch_size)
        self.eval_every = options.eval_every or max(1, samples // options.batch_size)
        size = (options.image_size, options.image_size)
        self.batches = PipelineBatches(
            TrainDataset(Reader(data.train, self.classes), train_transform(size), options.seed),
            torch.tensor(data.train["label"][:]),
            EvalDataset(Reader(data.val, self.classes), eval_transform(size)),
            torch.tensor(data.val["label"][:]),
            Share(
                place.replica,
                place.replicas,
                batch_size,
                options.microbatches,
                pictures=place.is_first,
                labels=place.is_last,
            ),
            options.seed,
            self.steps,
            count_workers(options.num_workers, samples),
            pin_memory=self.device.type == "cuda",
        )
        self.mean, self.std = IMAGENET.of_bytes(self.dtype, self.device, dims=2)
        self.stage = stage.to(self.device, self.dtype)
        self.pipeline = Pipeline(
            self.stage,
            place,
            options.schedule,
            options.microbatches,
            *((batch_size // options.microbatches, *shape) for shape in shapes),
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
            self.optimizer, T_max=max(1, self.steps)
        )
        self.losses: list[Tensor | None] = []  # since they were last read
        self.metrics: dict[str, dict[str, float]] = {"best": {}, "last": {}}
        self.times = Times(0.0, 0.0)
        self.total = Stopwatch()

    def fit(self, report: Report, folder: RunFolder | None) -> None:
        """Train, evaluate and save."""
        options, batches, recent = self.options, self.batches.train(), Stopwatch()
        self.total = Stopwatch()
        for step in range(1, self.steps + 1):
            asked = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - asked
            self.losses.append(self._step(*self._to_device(*batch)))
            lr = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            for watch in (recent, self.total):
                watch.waited += waited
                watch.samples += options.batch_size
            if step == 1 < self.steps:
                self.pipeline.take_times()  # the first step makes the connections
            logs = step % options.log_every == 0 or step == self.steps
            evaluates = step % self.eval_every == 0 or step == self.steps
            loss = self._read_losses(step) if logs or evaluates else None
            if logs:
                values = {"loss": loss, **self._bubble(), "lr": lr, **recent.reading()}
                report.train(step, step * options.batch_size, values)
                recent = Stopwatch()
            report.advance(step)
            if evaluates:
                began = time.monotonic()
                self._evaluate(step, report, folder)
                for watch in (recent, self.total):
                    watch.start += time.monotonic() - began
        if not self.steps:
            self._evaluate(0, report, folder)

    def _step(self, images: Tensor | None, labels: Tensor | None) -> Tensor | None:
        try:
            return self.pipeline.step(images, labels)
        except RuntimeError as error:
            if "more than 1 value per channel" not in f"{error} {error.__cause__}":
                raise
            raise UserError(
                "A BatchNorm layer gets one value per channel in a micro-batch, which it can't "
                "normalise: use fewer --microbatches, a larger --batch_size or larger pictures."
            ) from None

    def _to_device(
        self, images: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if images is not None:
            images = images.to(self.device, non_blocking=True).to(self.dtype)
            images = (images - self.mean) / self.std
        return images, None if labels is None else labels.to(self.device, non_blocking=True)

    def _read_losses(self, step: int) -> float:
        """The newest step's global loss, after a look at all since the last reading (a collective).

        On a GPU this waits for the device, so it is done only to log and before evaluating.
        """
        missing = torch.zeros((), device=self.device)
        mine = torch.stack([missing if loss is None else loss for loss in self.losses]).double()
        losses = sum_over_processes(mine / self.place.replicas).tolist()
        self.losses.clear()
        for number, loss in enumerate(losses, start=step - len(losses) + 1):
            _refuse_non_finite("loss", loss, number)
        return losses[-1]

    def _bubble(self) -> dict[str, float]:
        """The bubble since the last call (a collective)."""
        times = self.pipeline.take_times()
        self.times = Times(*map(sum, zip(self.times, times, strict=True)))
        bubble = measured_bubble(times, self.place, self.device)
        return {} if bubble is None else {"bubble": bubble}

    def _evaluate(self, step: int, report: Report, folder: RunFolder | None) -> None:
        """Score the whole validation data, and save the weights (a collective)."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for batch in self.batches.validation():
            images, labels = self._to_device(*batch)
            logits = self.pipeline.predict(images)
            if logits is not None:
                sums += _scores(logits[: len(labels)].to(self.dtype), labels)
        count, loss, top1, top5 = sum_over_processes(sums).tolist()
        metrics = {BEST_METRIC: top1 / count, "loss": loss / count}
        _refuse_non_finite("validation loss", metrics["loss"], step)  # nor are such weights saved
        if self.classes > 5:
            metrics["top5"] = top5 / count
        report.evaluation(step, step * self.options.batch_size, metrics)
        self.metrics["last"] = metrics
        is_best = metrics[BEST_METRIC] > self.metrics["best"].get(BEST_METRIC, -1)
        if is_best:
            self.metrics["best"] = metrics | {"step": step}
        weights = gather_weights(self.stage, self.place)
        if folder is not None:
            content = weights_bytes(weights)
            for name in ["last", *(["best"] if is_best else [])]:
                write_atomically(folder.path / f"{name}.safetensors", content)

    def summary(self) -> dict[str, Any]:
        """What became of the run, for summary.json (a collective)."""
        place = self.place
        busy, lasted = self.times
        mine = {"busy_seconds": busy, "peak_memory_bytes": peak_memory_bytes(self.device)}
        processes = gather_object([mine])
        bubble = measured_bubble(self.times, place, self.device)
        return {
            "world_size": place.stages * place.replicas,
            "replicas": place.replicas,
            "device": str(self.device.type),
            "global_batch_size": self.options.batch_size,
            "steps": self.steps,
            "metrics": self.metrics,
            "bubble": {
                "measured": bubble,
                "ideal": ideal_bubble(place.stages, self.options.microbatches),
                "step_seconds": lasted,
            },
            "processes": processes,
            **self.total.reading(),
            "peak_memory_bytes": max(each["peak_memory_bytes"] for each in processes),
        }


def _refuse_non_finite(what: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"The {what} is {loss} at step {step}: lower --lr; weights that were saved are from "
            "before it."
        )


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Samples, summed cross entropy, and how many are right among the first 1 and 5 guesses."""
    right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    count = loss.new_tensor(len(labels))
    return torch.stack([count, loss, right[:, 0].sum().to(loss), right.sum().to(loss)]).double()


def main(options: PipelineOptions) -> int:
    """Options, data, model, its cut, Accelerate, training: in this order."""
    accelerator = create_accelerator(options)
    precision = {"no": None, "bf16": torch.bfloat16}
    if accelerator.mixed_precision not in precision:
        raise UserError(
            f"Mixed precision {accelerator.mixed_precision} needs one loss scale for all stages, "
            "which this script doesn't have; launch with --mixed_precision no or bf16."
        )
    stages = count_stages(options, accelerator.num_processes)
    started = time.monotonic()
    data = load_data(options)
    for note in data.notes:
        accelerator.print(note)

    torch.manual_seed(options.seed)
    size = (options.image_size, options.image_size)
    model = build_classification_model(
        options.model, len(data.classes), weights=options.weights, image_size=size
    )
    units = units_of(model, f"--model {options.model}")
    costs = costs_of(units, size)
    parts = choose_cut(options, units, costs, stages)
    described = describe(units, costs, parts)
    for number, each in enumerate(described, start=1):
        ends = dict.fromkeys((each["first"], each["last"]))
        accelerator.print(
            f"Stage {number} of {stages}: {' to '.join(ends)}, "
            f"{each['parameters']:.0%} of the parameters, {each['compute']:.0%} of the computation."
        )

    largest = max(each["compute"] for each in described)
    if not options.cuts and options.balance == "parameters" and largest * stages > 1.5:
        accelerator.print(
            f"One stage has {largest:.0%} of the computation, and the others wait for it: "
            "--balance compute divides that evenly instead of the parameters."
        )

    folder = claim_folder(accelerator, options)
    place = take_place(stages, accelerator.device)
    if place.replicas > 1:
        # The whole network on every process, since making groups takes all of them.
        convert_norm(model, "sync_bn", impl="own", group_size=place.replicas)
    part = parts[place.stage]
    shapes = (costs[part.start - 1].shape if part.start else (3, *size), costs[part][-1].shape)
    stage = Stage(units[part], precision[accelerator.mixed_precision])
    del model, units  # the other stages' weights are not needed here

    training = Training(accelerator, options, place, data, stage, shapes)
    report = Report(accelerator, folder, options, BEST_METRIC, start=0, total=training.steps)
    try:
        training.fit(report, folder)
    finally:
        report.close()
    reason = (
        f"The {place.replicas} copies of a stage normalise together."
        if place.replicas > 1
        else "Each stage is on one process only."
    )
    summary = {
        "task": "pipeline",
        "model": options.model,
        "dataset": options.dataset,
        "norm": {
            "kind": "sync_bn" if place.replicas > 1 else "bn",
            "reason": reason,
            "advice": None,
        },
        "stages": described,
        "schedule": options.schedule,
        "microbatches": options.microbatches,
        **training.summary(),
        "seconds": time.monotonic() - started,
    }
    report.conclude(summary)
    if (bubble := summary["bubble"])["measured"] is not None:
        accelerator.print(
            f"  bubble  {bubble['measured']:.1%} of the stages' time, "
            f"{bubble['ideal']:.1%} for stages of equal cost"
        )
    close(accelerator)
    return 0


if __name__ == "__main__":
    run(main, options)
