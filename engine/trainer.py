"""Training a whole network in every process, the same for every task.

    for each optimizer step:
        load its micro-batches       the next entries of the stream of samples
        sum the denominators         one small collective where only the batches can tell them
        forward and backward         gradients are exchanged after the last micro-batch only
        sum losses and stop flags    one small collective
        step, average the weights

k processes with batch b compute what one computes with batch k*b. All state between two steps is
in the checkpoint: weights, averaged weights, optimizer, loss scale and the step's number.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.about import About, compare_classes
from engine.captured_step import CapturedStep, captures, graph_recorder
from engine.evaluation import Evaluator
from engine.loaders import Loading, count_workers, train_batches
from engine.loop import Loop
from engine.loss_buffer import StepRecord
from engine.optim import create_ema, create_optimizer, lr_schedule
from engine.options import TrainingOptions
from engine.plan import Plan
from engine.rehearsal import TOLERANCES, compare_with_eager, rehearse
from engine.state import Progress, State
from engine.step import OptimizerStep
from engine.task import Batch, Evaluation, Task
from errors import UserError
from models.find_weights import NAMED_WEIGHTS, find_weights
from models.weights import refuse_incomplete
from norm import COMPILE_OPTIONS, Disagreement, NormChoice, rank_disagreement


class Trainer(Loop):
    """A run of one of the tasks' scripts.

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

    remedies = "lower --lr, or add --warmup_steps or --clip_grad 1"

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        norm: NormChoice,
        plan: Plan,
        options: TrainingOptions,
    ) -> None:
        if options.precise_bn and norm.kind not in ("bn", "sync_bn"):
            raise UserError(
                f"--precise_bn recomputes BatchNorm's statistics, and with --norm {norm.kind} this "
                "model has none; leave it out."
            )
        ranks = options.sync_bn_group_size or plan.num_processes
        identity = {
            # In one process BatchNorm is what SyncBatchNorm is in several.
            "norm": "sync_bn" if norm.kind == "bn" and plan.num_processes == 1 else norm.kind,
            "samples_per_statistic": {
                "bn": plan.batch_size,
                "sync_bn": plan.batch_size * ranks,
            }.get(norm.kind),
            **task.identity,
        }
        data = task.train_data, task.val_data
        super().__init__(accelerator, task.name, task.best_metric, *data, identity, plan, options)
        self.task, self.norm = task, norm
        self.learning_rate = lr_schedule(options, plan.total_steps, plan.peak_lr)
        if options.warmup_steps >= plan.total_steps > 0 and not options.eval_only:
            accelerator.print(
                f"The learning rate still warms up when the run ends, after {plan.total_steps} "
                "steps: give fewer --warmup_steps."
            )

        # The order matters: the averaged copy is taken of the plain model, weights are loaded
        # before DDP compares them, and DDP wraps the compiled model.
        ema = create_ema(model, options.ema)
        optimizer = create_optimizer(model, options)
        checkpoint = self._resume(State(model, ema, optimizer, accelerator.scaler, Progress()))
        if not checkpoint and options.weights not in NAMED_WEIGHTS:
            if options.eval_only:
                refuse_incomplete(model, options.weights)
            path, classes = find_weights(options.weights), task.inference.classes
            compare_classes(path, task.name, classes, options, accelerator.print)
        self.first_step = self.state.progress.step
        self.train_batches, self.evaluator = self._start_loaders()
        self.loaders = self.train_batches, *self.evaluator.loaders

        if options.compile:
            model.compile(options=COMPILE_OPTIONS)
        captured = captures(accelerator, options)
        if captured:
            # Captured work can't be on the default stream, and DDP stays on the one it is made on.
            torch.cuda.synchronize()
            torch.cuda.set_stream(torch.cuda.Stream())
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        parts = accelerator, task, wrapped, optimizer, self.state, plan, options
        if captured:
            self.optimizer_step: OptimizerStep = CapturedStep(
                *parts,
                tolerance=TOLERANCES[self._precision()],
                must=options.cuda_graph == "on",
                record=graph_recorder(),
            )
        else:
            self.optimizer_step = OptimizerStep(*parts)
        self.disagreement: Disagreement | None = None
        self._start(checkpoint)

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

    def _train_step(self) -> None:
        """One optimizer step; nothing in it waits for the device."""
        progress, plan = self.state.progress, self.plan
        step = progress.step
        micro_batches = [self.task.to_device(self._next_batch()) for _ in range(plan.grad_accum)]
        if step == self.first_step:
            self._rehearse(micro_batches)
        progress.step += 1
        several = plan.num_processes > 1 and not self.options.compile
        sums, grad_norm = self.optimizer_step(
            micro_batches,
            step,
            lr=self.learning_rate(step),
            signum=self.stop.signum,
            measure_gradient=self._log_due() or self._save_due() or self._eval_due(),
            around_last=self._probe() if several and self._eval_due() else None,
        )
        self.losses.add(progress.step, sums, grad_norm)

    def _rehearse(self, micro_batches: list[Batch]) -> None:
        """What comes before the first step: passes that leave no trace."""
        passes = self.optimizer_step, self.state.model, micro_batches, self.first_step
        if self.options.compile:
            compare_with_eager(*passes, self._precision())
        elif self.options.deterministic or self.accelerator.num_processes > 2:
            rehearse(*passes)

    def _precision(self) -> str:
        """What is computed in, as a key of TOLERANCES."""
        half = self.accelerator.mixed_precision != "no"
        return "half" if half else "double" if self.options.double else "single"

    @contextlib.contextmanager
    def _probe(self) -> Iterator[None]:
        """Measure how far the processes' batches disagree."""
        with rank_disagreement(self.state.model) as probe:  # one collective, one device sync
            yield
        if probe.result.layers:
            self.disagreement = probe.result

    def _measured(self, record: StepRecord) -> dict[str, float]:
        return {"grad_norm": record.grad_norm}

    def _score(self) -> Evaluation | None:
        step = self.state.progress.step
        evaluation = self.evaluator.evaluate(self.state.evaluated_model, step)
        if evaluation and self.disagreement:
            self.report.disagreement(step, self.disagreement)
        return evaluation

    def _figures(self, details: Any) -> dict[str, Tensor]:
        with self.evaluator.inference(self.state.evaluated_model):
            return self.task.figures(self.state.evaluated_model, details)

    def _about(self) -> About:
        model, done = self.state.evaluated_model, self.state.progress
        return self.task.inference.about(model, self.norm.kind, done.step, done.metrics)

    def _summary(self) -> dict[str, Any]:
        norm = {
            "kind": self.norm.kind,
            "reason": self.norm.reason,
            "disagreement": self.disagreement and self.disagreement.share,
            "advice": self.disagreement and self.disagreement.advice,
        }
        return {"norm": norm}
