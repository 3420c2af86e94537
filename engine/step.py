"""One optimizer step: everything between two batches."""

import contextlib

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from engine.collectives import sum_over_processes
from engine.loss_buffer import GlobalSums, StepSums, signal_flags
from engine.options import TrainingOptions
from engine.plan import Plan
from engine.randomness import naming_what_is_not_deterministic, seed_step
from engine.state import State
from engine.task import Batch, Losses, Task
from errors import UserError


class OptimizerStep:
    """Forward, backward, exchange of gradients, clipping, optimizer, averaging of weights.

    Nothing in it waits for the device.

    Args:
        accelerator: has prepared ``model`` and ``optimizer``.
        task: computes the losses.
        model: wrapped in DistributedDataParallel where there are several processes.
        optimizer: as prepared.
        state: the unwrapped model and its average.
        plan: the run's arithmetic.
        options: clip_grad and seed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        plan: Plan,
        options: TrainingOptions,
    ) -> None:
        self.accelerator, self.task, self.plan, self.options = accelerator, task, plan, options
        self.model, self.optimizer, self.state = model, optimizer, state
        # Accelerate's wrapper scales the loss of fp16. It also looks twice for a package on the
        # disk at every step, which takes half a millisecond.
        self.stepping = optimizer if accelerator.scaler else state.optimizer
        device = accelerator.device
        self.images = torch.tensor(plan.global_batch_size, dtype=torch.float64, device=device)
        self.signals = signal_flags(0, device)

    def __call__(
        self,
        micro_batches: list[Batch],
        step: int,
        lr: float,
        signum: int,
        measure_gradient: bool,
        around_last: contextlib.AbstractContextManager | None,
    ) -> tuple[GlobalSums, Tensor | None]:
        """Make one step. Two small collectives, or one, besides the gradients' and the layers'.

        Args:
            micro_batches: on the device.
            step: optimizer steps done before, which seeds what is random.
            lr: learning rate.
            signum: the signal for which this process was asked to stop, or 0.
            measure_gradient: whether the gradient's norm is wanted, also where nothing is clipped.
            around_last: entered around the last forward and backward pass, or None.

        Returns:
            The global losses and counts, and the gradient's norm or None.

        Raises:
            UserError: a BatchNorm layer gets one value per channel.
        """
        self.seed(step)
        self.set_learning_rate(lr)
        if signum:
            self.signals.copy_(signal_flags(signum, self.signals.device))
        if not self.state.model.training:  # walking over the modules takes as long as small layers
            self.model.train()
        result = self.on_device(micro_batches, measure_gradient, around_last)
        self.state.optimizer.zero_grad()  # Accelerate's wrapper inspects signatures at every call
        if self.state.ema:
            self.state.ema.update(self.state.model, step + 1)
        return result

    def seed(self, step: int) -> None:
        """Seed what is random on the device in step ``step``."""
        accelerator = self.accelerator
        seed_step(self.options.seed, step, accelerator.process_index, accelerator.device)

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def on_device(
        self,
        micro_batches: list[Batch],
        measure_gradient: bool,
        around_last: contextlib.AbstractContextManager | None = None,
    ) -> tuple[GlobalSums, Tensor | None]:
        """What the device does in a step, the averaging apart; the gradients are left in place.

        Arguments and result are those of ``__call__``.
        """
        sums = self.gradients(micro_batches, around_last)
        grad_norm = None
        if self.options.clip_grad:
            parameters = self.model.parameters()
            grad_norm = self.accelerator.clip_grad_norm_(parameters, self.options.clip_grad)
        elif measure_gradient:
            self.accelerator.unscale_gradients(self.optimizer)
            grad_norm = nn.utils.get_total_norm(self._gradients())
        self.stepping.step()
        return sums, grad_norm

    def gradients(
        self,
        micro_batches: list[Batch],
        around_last: contextlib.AbstractContextManager | None = None,
    ) -> GlobalSums:
        """Compute the global gradient; arguments and result are those of ``__call__``."""
        denominators = self._denominators(micro_batches)
        sums = StepSums()
        for batch in micro_batches[:-1]:
            with self.accelerator.no_sync(self.model):
                sums.add(self._forward_backward(batch, denominators))
        with around_last or contextlib.nullcontext():
            sums.add(self._forward_backward(micro_batches[-1], denominators))
        total = sums.over_processes(self.signals)
        if total.gradient_factor is not None:
            gradients = self._gradients()
            torch._foreach_mul_(gradients, total.gradient_factor.to(gradients[0].dtype))
        return total

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _denominators(self, batches: list[Batch]) -> dict[str, Tensor]:
        """The denominators of the global loss; one collective where the task has its own."""
        own = [self.task.denominators(batch) for batch in batches]
        if not own[0]:
            return {"images": self.images}
        sums = sum(torch.stack(list(each.values())) for each in own)
        return {"images": self.images, **dict(zip(own[0], sum_over_processes(sums), strict=True))}

    def _forward_backward(self, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        with naming_what_is_not_deterministic():
            losses = self._losses(batch, denominators)
            # DDP averages the gradients of the processes; their shares must be added.
            self.accelerator.backward(sum(losses.parts.values()) * self.plan.num_processes)
        return losses

    def _losses(self, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        try:
            return self.task.losses(self.model, batch, denominators)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "A BatchNorm layer gets one value per channel, which it can't normalise: use a "
                "larger --batch_size, larger images, --norm sync_bn on several processes, or "
                "--norm group_norm."
            ) from None
