"""An optimizer step whose work on the GPU is captured in a CUDA graph once, and then replayed.

With small batches, launching the kernels of a step takes the host longer than the GPU takes to run
them. A replayed graph is one launch. It holds the forward and backward passes, the exchange of
gradients, clipping, the optimizer and the sums. What changes from step to step is in tensors that
stay where they are: the batch, the learning rate, the flags of signals. torch keeps the seed of
its random generator in such a tensor too.

A graph fits batches of one shape: each shape has its own.
"""

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from engine.loss_buffer import GlobalSums
from engine.options import TrainingOptions
from engine.rehearsal import Pass, first_difference, take_pass
from engine.step import OptimizerStep
from engine.task import Batch
from errors import UserError

Result = tuple[GlobalSums, Tensor | None]
Recorder = Callable[[Callable[[], Result]], tuple[Callable[[], None], Result]]

# Steps before the first capture, in which libraries start up and the optimizer makes its state.
# torch's documentation asks for 3, and for 11 where DistributedDataParallel arranges its buckets.
WARM_UP, WARM_UP_DDP = 3, 11
# Batches of further shapes run eagerly.
MOST_GRAPHS = 16
# Changes of the weights of less than this share of them are lost in their rounding.
ROUNDING = 1e-5
REMEDY = "Train with --cuda_graph off."


def captures(accelerator: Accelerator, options: TrainingOptions) -> bool:
    """Whether ``--cuda_graph`` asks for captured steps; "auto" does in one process on a GPU.

    NCCL between GPUs has not been seen in a captured step yet: there it takes "on". So does
    ``--double``, since a captured step rounds the learning rate to float32.
    """
    if options.cuda_graph == "auto":
        one = accelerator.num_processes == 1
        return accelerator.device.type == "cuda" and one and not options.double
    return options.cuda_graph == "on"


def graph_recorder() -> Recorder:
    """What captures work on the current stream, which must not be the default one.

    It takes a function and returns what replays the function's work on the GPU, and the function's
    result, whose tensors every replay overwrites. All graphs share one pool of memory: only one
    runs at a time, and none needs what another one left.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # Other threads go on meanwhile: one pins the loader's memory, one watches NCCL.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result

    return record


@contextlib.contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    """Inside, torch raises RuntimeError where the host would wait for the GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Graph(NamedTuple):
    """A captured step.

    Attributes:
        batch: the tensors that it reads.
        replay: does the step.
        result: what every replay writes.
    """

    batch: list[Tensor]
    replay: Callable[[], None]
    result: Result

    def __call__(self, batch: list[Tensor]) -> Result:
        """Make the step with another batch of the same shapes."""
        torch._foreach_copy_(self.batch, batch)
        self.replay()
        sums, grad_norm = self.result
        return sums._replace(values=sums.values.clone()), grad_norm.clone()


class CapturedStep(OptimizerStep):
    """``OptimizerStep`` by replayed graphs.

    Some steps run eagerly, with the same collectives: the first ones of a run, the first one with a
    batch of another shape, and those that are probed. The first captured step is compared with the
    eager one, in one process that of every shape. Where the work can't be captured, as where the
    host reads a value from the GPU, steps run eagerly.

    Args:
        *args: of ``OptimizerStep``.
        tolerance: largest relative difference between a captured and an eager step.
        must: whether to refuse what can't be captured.
        record: from ``graph_recorder``, or what stands for it where there is no GPU.
    """

    def __init__(self, *args: Any, tolerance: float, must: bool, record: Recorder) -> None:
        super().__init__(*args)
        self.tolerance, self.must, self.record = tolerance, must, record
        # torch's fused optimizers take a learning rate on the device in float32.
        self.lr = torch.zeros((), device=self.accelerator.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        wrapped = isinstance(self.model, DistributedDataParallel)
        self.warm_up = WARM_UP_DDP if wrapped else WARM_UP
        self.graphs: dict[Hashable, Graph] = {}
        self.seen: set[Hashable] = set()
        self.most_graphs = MOST_GRAPHS
        self.step = 0

    def seed(self, step: int) -> None:
        """Seed what is random on the device in step ``step``."""
        self.step = step
        super().seed(step)

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next step, on the device."""
        self.lr.fill_(lr)

    def on_device(
        self,
        micro_batches: list[Batch],
        measure_gradient: bool,
        around_last: contextlib.AbstractContextManager | None = None,
    ) -> Result:
        """What the device does in a step, the averaging apart; the gradients may be left in place.

        Arguments and result are those of ``OptimizerStep``; a captured step always measures the
        gradient.

        Raises:
            UserError: the captured step differs from the eager one, or can't be captured and must.
        """
        leaves, structure = pytree.tree_flatten(micro_batches)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = structure, *((t.shape, t.stride(), t.dtype) for t in tensors)
        if not around_last:
            graph = self.graphs.get(key)
            if graph is None and self._may_capture(key):
                graph = self._capture(micro_batches)
            if graph:
                self.graphs[key] = graph
                return graph(tensors)
        self.seen.add(key)
        try:
            return super().on_device(micro_batches, measure_gradient, around_last)
        except torch.OutOfMemoryError as error:
            if not self.graphs:
                raise
            raise UserError(
                f"The GPU's memory doesn't take a step beside those that are captured ({error}). "
                f"{REMEDY[:-1]}, or with a smaller --batch_size."
            ) from None

    def _may_capture(self, key: Hashable) -> bool:
        """Whether the time has come; for the first graph it comes at one step on all processes."""
        self.warm_up -= 1
        if self.warm_up >= 0 or len(self.graphs) >= self.most_graphs:
            return False
        return key in self.seen or not self.graphs

    def _capture(self, micro_batches: list[Batch]) -> Graph | None:
        """The graph of a step with such a batch, which isn't made yet; None where it can't be."""
        leaves, structure = pytree.tree_flatten(micro_batches)
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        static = pytree.tree_unflatten(leaves, structure)
        batch = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def work() -> Result:
            return super(CapturedStep, self).on_device(static, True)

        # Tries are further collectives: in several processes all make them at the same step only.
        tries = not self.graphs or self.accelerator.num_processes == 1
        try:
            expected = self._try(work) if tries else None
        except RuntimeError as error:  # before anything was captured
            return self._give_up(error)
        try:
            with self._capturable():
                replay, result = self.record(work)
        except torch.OutOfMemoryError as error:
            return self._give_up(error)
        except RuntimeError as error:
            # A broken capture leaves torch's random generator behind in a state without return.
            raise UserError(f"{_sentence(error)} {REMEDY}") from None
        if expected:
            self._compare(expected, lambda: replay() or result)
        self.optimizer.zero_grad()
        return Graph(batch, replay, result)

    def _compare(self, expected: tuple[Pass, float], replay: Callable[[], Result]) -> None:
        """Hold a captured step against the eager one, and its change against half the rate's.

        Raises:
            UserError: they differ.
        """
        found, change = self._try(replay)
        difference = first_difference(expected[0], found, self.tolerance)
        if not difference and not self._close(change, expected[1]):
            difference = f"the weights change by {change:.3g} of theirs, not {expected[1]:.3g}"
        rate = self.lr.clone()
        self.lr.mul_(0.5)
        _, half = self._try(replay)
        self.lr.copy_(rate)
        if not difference and not self._close(2 * half, change):
            difference = "the weights don't follow the learning rate"
        if difference:
            raise UserError(
                f"Captured in a CUDA graph, a step is wrong under torch {torch.__version__}: "
                f"{difference}. Train with --cuda_graph off, or with another version of torch."
            )

    def _close(self, change: float, expected: float) -> bool:
        small = max(change, expected) < ROUNDING
        return small or math.isclose(change, expected, rel_tol=self.tolerance)

    def _try(self, work: Callable[[], Result]) -> tuple[Pass, float]:
        """The loss and the gradients of a step that leaves no trace, and how far the weights move.

        That is the norm of their change over their own norm. A few device syncs.
        """
        scaler = self.accelerator.scaler
        tensors = [
            *self.state.model.parameters(),
            *self.state.model.buffers(),
            *(v for s in self.state.optimizer.state.values() for v in s.values()),
            *([scaler._scale, scaler._growth_tracker] if scaler else []),
        ]
        tensors = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        saved = [tensor.detach().clone() for tensor in tensors]
        weights = len(list(self.state.model.parameters()))
        with torch.no_grad():
            try:
                with refusing_to_wait(self.accelerator.device), torch.enable_grad():
                    sums, _ = work()
                moved = torch._foreach_sub(tensors[:weights], saved[:weights])
                change = nn.utils.get_total_norm(moved) / nn.utils.get_total_norm(saved[:weights])
            finally:
                torch._foreach_copy_(tensors, saved)
                super().seed(self.step)
        return take_pass(self.state.model, self.optimizer, sums), change.item()

    @contextlib.contextmanager
    def _capturable(self) -> Iterator[None]:
        """Inside, AdamW doesn't refuse to be captured. Fused, it does the same in any case."""
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        for group in groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in groups:
                group["capturable"] = False

    def _give_up(self, error: RuntimeError) -> None:
        """Capture nothing more; the graphs there are stay in use.

        Raises:
            UserError: steps must be captured, and none could be.
        """
        if self.must and not self.graphs:
            raise UserError(f"{_sentence(error)} {REMEDY}") from None
        self.most_graphs = 0
        self.optimizer.zero_grad()
        self.accelerator.print(f"{_sentence(error)} Steps run eagerly.")


def _sentence(error: BaseException) -> str:
    while (
        cause := error.__cause__ or error.__context__
    ):  # the first error; the others follow from it
        error = cause
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"This step can't be captured in a CUDA graph: {why}."
