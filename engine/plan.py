"""The arithmetic of a run: batches, steps and learning rate."""

import math
from dataclasses import dataclass

from engine.options import TrainingOptions


@dataclass(frozen=True)
class Plan:
    """How a run consumes its data.

    Attributes:
        batch_size: samples per process and forward pass.
        grad_accum: forward passes per optimizer step.
        num_processes: processes that train together.
        global_batch_size: samples per optimizer step, over all processes.
        total_steps: optimizer steps of the whole run.
        eval_every: optimizer steps between evaluations.
        checkpoint_every: optimizer steps between checkpoints.
        log_every: optimizer steps between log lines.
        peak_lr: learning rate after the warm-up, scaled to the batch if asked for.
    """

    batch_size: int
    grad_accum: int
    num_processes: int
    global_batch_size: int
    total_steps: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    peak_lr: float

    def due(self, every: int, step: int) -> bool:
        """Whether what happens after every ``every`` steps, and at the end, is due at ``step``."""
        return step % every == 0 or step == self.total_steps

    @property
    def total_samples(self) -> int:
        """Entries of the stream of samples that the run consumes."""
        return self.total_steps * self.global_batch_size


def make_plan(options: TrainingOptions, num_samples: int, num_processes: int) -> Plan:
    """Resolve the options of batch, length and learning rate.

    Args:
        options: the script's options.
        num_samples: size of the training data.
        num_processes: processes that train together.

    Raises:
        UserError: the global batch doesn't divide into equal batches.
    """
    batch_size = options.samples_per_process(num_processes)
    global_batch = batch_size * num_processes * options.grad_accum
    epoch_steps = max(1, num_samples // global_batch)
    total = options.max_steps or math.ceil(options.epochs * num_samples / global_batch)
    eval_every = options.eval_every or min(epoch_steps, max(1, total))
    return Plan(
        batch_size=batch_size,
        grad_accum=options.grad_accum,
        num_processes=num_processes,
        global_batch_size=global_batch,
        total_steps=total,
        eval_every=eval_every,
        checkpoint_every=options.checkpoint_every or eval_every,
        log_every=options.log_every,
        peak_lr=options.lr * (global_batch / options.scale_lr if options.scale_lr else 1),
    )
