"""Passes before the first step of a run, which leave no trace.

A compiler's mistake can leave a loss right and its gradients wrong: such a network trains nothing
and says nothing. So a compiled run makes its first step's passes eagerly and compiled, and compares
them. Runs of more than two processes, and deterministic ones, rehearse for their own reasons.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from engine.loss_buffer import GlobalSums
from engine.step import OptimizerStep
from engine.task import Batch
from errors import UserError

# Largest relative difference of a loss or of a parameter's gradient norm, by the precision computed
# in. Compilers reorder sums; a mistake is off by its whole size.
TOLERANCES = {"half": 0.3, "single": 0.05, "double": 1e-6}
# Gradients smaller than this share of the largest are rounding, as of a bias before BatchNorm.
NEGLIGIBLE = 1e-4
# Losses of two passes that differ by more than this, relatively, show a network that is random.
ROUNDING = 1e-4


class Pass(NamedTuple):
    """The loss of a step, and the norm of each parameter's gradient by the parameter's name."""

    loss: float
    norms: dict[str, float]


def compare_with_eager(
    step: OptimizerStep, model: nn.Module, micro_batches: list[Batch], number: int, precision: str
) -> None:
    """Make the forward and backward passes of a step eagerly and compiled, and compare them.

    Costs three extra passes; every process must call it. A network that draws at random (dropout,
    sampled proposals) draws differently when compiled, so there only vanished and infinite
    gradients are detected.

    Args:
        step: the step, with the compiled model.
        model: the unwrapped model.
        micro_batches: of the step, on the device.
        number: optimizer steps done before.
        precision: a key of TOLERANCES.

    Raises:
        UserError: they differ; the message names the differing parameter that is nearest the loss,
            where a backward pass goes wrong first.
    """
    with _no_trace(model):
        with torch.compiler.set_stance("force_eager"):
            eager = _run(step, model, micro_batches, number)
            other = _run(step, model, micro_batches, number + 1)
        compiled = _run(step, model, micro_batches, number)
    is_random = not math.isclose(other.loss, eager.loss, rel_tol=ROUNDING)
    tolerance = math.inf if is_random else TOLERANCES[precision]
    found = first_difference(eager, compiled, tolerance)
    if found:
        raise UserError(
            f"Compiled, the first step is wrong under torch {torch.__version__}: {found}. Train "
            "without --compile, or with another version of torch."
        )


def rehearse(
    step: OptimizerStep, model: nn.Module, micro_batches: list[Batch], number: int
) -> None:
    """Make the forward and backward passes of a step once, without a trace.

    DistributedDataParallel rearranges its buckets after its first backward pass. Among more than
    two processes the last bits of a sum depend on a value's place in them: without a rehearsal the
    first step of a resumed run would differ from the uninterrupted run's. With ``--deterministic``
    an operation without a deterministic form shows here, before anything is trained.

    Every process must call it. Arguments are those of ``compare_with_eager``, which rehearses too.
    """
    with _no_trace(model):
        _run(step, model, micro_batches, number)


def first_difference(eager: Pass, compiled: Pass, tolerance: float) -> str:
    """What differs, in words, or ""."""
    if not _close(eager.loss, compiled.loss, tolerance, floor=0.0):
        return f"the loss is {compiled.loss:.6g} instead of {eager.loss:.6g}"
    floor = NEGLIGIBLE * max(eager.norms.values(), default=0.0)
    # A parameter without a gradient has none that counts: 0.
    pairs = {
        name: (eager.norms.get(name, 0.0), compiled.norms.get(name, 0.0))
        for name in eager.norms | compiled.norms
    }
    differing = [
        n for n, (want, found) in pairs.items() if not _close(want, found, tolerance, floor)
    ]
    if not differing:
        return ""
    *others, name = differing
    want, found = pairs[name]
    more = f", and {len(others)} more differ" if others else ""
    return f"the gradient of {name} has the norm {found:.6g} instead of {want:.6g}{more}"


def _close(expected: float, found: float, tolerance: float, floor: float) -> bool:
    if not math.isfinite(expected):  # fp16's first steps overflow
        return True
    if not math.isfinite(found) or ((found == 0) != (expected == 0) and abs(expected) > floor):
        return False
    return abs(found - expected) <= tolerance * max(abs(expected), floor) or abs(expected) <= floor


def _run(step: OptimizerStep, model: nn.Module, micro_batches: list[Batch], number: int) -> Pass:
    """One pass of a step without the optimizer; a device sync."""
    step.seed(number)
    model.train()
    sums = step.gradients(micro_batches)
    return take_pass(model, step.optimizer, sums)


def take_pass(model: nn.Module, optimizer: torch.optim.Optimizer, sums: GlobalSums) -> Pass:
    """The loss and the gradients' norms of a pass just made (a device sync); ends its gradients."""
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = torch.stack(torch._foreach_norm(list(named.values()))).tolist() if named else []
    optimizer.zero_grad()
    loss = sums.values[: len(sums.parts)].sum().item()
    return Pass(loss, dict(zip(named, norms, strict=True)))


@contextlib.contextmanager
def _no_trace(model: nn.Module) -> Iterator[None]:
    """Inside, buffers may change; afterwards they are as before."""
    saved = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), saved, strict=True):
                buffer.copy_(value)
