"""Pipeline parallelism: each process holds one stage, and micro-batches pass from one to the next.

The processes form a table of stages x replicas, rank = stage * replicas + replica. A column is a
pipeline. A row holds the copies of one stage, whose ranks are consecutive, so that the gradients
and batch statistics that they exchange stay within a machine where possible.

The schedules are torch's: GPipe (Huang et al., 2019, arXiv:1811.06965) and 1F1B (Narayanan et al.,
2019, PipeDream, and 2021, arXiv:2104.04473).
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from engine.collectives import sum_over_processes

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class Place(NamedTuple):
    """A process's place in the table of stages x replicas.

    Attributes:
        stages: processes in a pipeline.
        replicas: pipelines.
        stage: which stage of its pipeline this process is.
        replica: which pipeline it belongs to.
        pipeline: the processes of its pipeline.
        copies: the processes that hold the same stage.
        on_host: the processes of the first pipeline, for messages that stay off the devices.
    """

    stages: int
    replicas: int
    stage: int
    replica: int
    pipeline: dist.ProcessGroup
    copies: dist.ProcessGroup
    on_host: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this process has the first stage, which takes the images."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this process has the last stage, which takes the labels."""
        return self.stage == self.stages - 1


def take_place(stages: int, device: torch.device) -> Place:
    """Arrange all processes in pipelines of so many stages (a collective).

    Without torch.distributed this process becomes a group of one.

    Args:
        stages: stages of a pipeline; the number of processes must be a multiple.
        device: of this process.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    replicas = dist.get_world_size() // stages
    names = ("stage", "replica")
    kind = device.type if dist.get_world_size() > 1 else "cpu"
    mesh = init_device_mesh(kind, (stages, replicas), mesh_dim_names=names)
    first_pipeline = [stage * replicas for stage in range(stages)]
    return Place(
        stages,
        replicas,
        mesh.get_local_rank("stage"),
        mesh.get_local_rank("replica"),
        mesh.get_group("stage"),
        mesh.get_group("replica"),
        dist.new_group(first_pipeline, backend="gloo"),
    )


class Times(NamedTuple):
    """Times of a process's steps, in seconds.

    Attributes:
        busy: the time in which its stage computed, forward or backward.
        lasted: the time from the first forward pass to the end of the last backward pass.
    """

    busy: float
    lasted: float


class Clock:
    """Adds up spans of time, on the host or, with CUDA, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def span(self) -> Iterator[None]:
        """Count what happens inside."""
        start = self._now()
        yield
        self._spans.append((start, self._now()))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float:
        """Seconds counted since the last call (a device sync)."""
        spans, self._spans = self._spans, []
        if self.device.type != "cuda":
            return sum(end - start for start, end in spans)
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in spans) / 1000


class TimedStage(PipelineStage):
    """A stage that counts the time of its forward and backward passes, without its messages."""

    def __init__(self, module: nn.Module, place: Place, device: torch.device, **shapes: Any):
        super().__init__(module, place.stage, place.stages, device, group=place.pipeline, **shapes)
        self.busy = Clock(device)

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of one micro-batch, whose input has arrived."""
        with self.busy.span():
            return super().forward_one_chunk(*args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """The backward pass of one micro-batch, whose gradient has arrived."""
        with self.busy.span():
            return super().backward_one_chunk(*args, **kwargs)


class Pipeline:
    """This process's stage, run together with the others of its pipeline.

    All processes of a pipeline must make the same calls.

    Args:
        module: the stage, on its device.
        place: this process's place.
        schedule: a key of SCHEDULES.
        microbatches: parts into which a batch is split.
        input_shape: of one micro-batch as this stage takes it.
        output_shape: of one micro-batch as this stage returns it.
        dtype: of what the stages send to each other.
        device: of the stage.
    """

    def __init__(
        self,
        module: nn.Module,
        place: Place,
        schedule: str,
        microbatches: int,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.module, self.place = module, place
        if place.stages > 1:
            # The first NCCL operation of a group must be one of all its processes.
            dist.all_reduce(torch.zeros(1, device=device), group=place.pipeline)
        # Given the shapes, torch makes no trial forward pass, which in some of its versions would
        # update BatchNorm's running statistics from made-up images.
        shapes = {
            name: torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
            for name, shape in (("input_args", input_shape), ("output_args", output_shape))
        }
        self._stage = TimedStage(module, place, device, **shapes)
        self._train = SCHEDULES[schedule](self._stage, microbatches, loss_fn=_mean_loss)
        # A schedule's buffers are made either for training or for evaluation.
        untimed = PipelineStage(
            module, place.stage, place.stages, device, group=place.pipeline, **shapes
        )
        self._eval = ScheduleGPipe(untimed, microbatches)
        self._dtype = dtype
        self._wall = Clock(device)

    def step(self, images: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """Forward and backward pass of one batch.

        Leaves the gradient of the mean loss over the global batch in the parameters.

        Args:
            images: float (B, 3, H, W), this pipeline's images; None but on the first stage.
            labels: int64 (B,), their classes; None but on the last stage.

        Returns:
            A scalar, the mean cross entropy over this pipeline's batch; None but on the last stage.
        """
        self.module.train()
        losses: list[Tensor] = []
        with self._wall.span():
            inputs = (images.to(self._dtype),) if self.place.is_first else ()
            target = labels if self.place.is_last else None
            self._train.step(*inputs, target=target, losses=losses)
        # The later stages finish first and do this while the earlier ones still compute.
        self._average_gradients()
        return torch.stack(losses).detach().mean() if self.place.is_last else None

    @torch.no_grad()
    def predict(self, images: Tensor | None) -> Tensor | None:
        """Logits of one batch in evaluation mode.

        Args:
            images: float (B, 3, H, W), as many as in a step; None but on the first stage.

        Returns:
            (B, K); None but on the last stage.
        """
        self.module.eval()
        return self._eval.step(*((images.to(self._dtype),) if self.place.is_first else ()))

    def _average_gradients(self) -> None:
        if self.place.replicas == 1:
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        flat = parameters_to_vector(gradients)
        dist.all_reduce(flat, group=self.place.copies)
        vector_to_parameters(flat.div_(self.place.replicas), gradients)

    def take_times(self) -> Times:
        """The times since the last call (a device sync)."""
        return Times(self._stage.busy.take(), self._wall.take())


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits, labels)


def measured_bubble(times: Times, place: Place, device: torch.device) -> float | None:
    """The share of a step in which the stages stand idle (a collective of all processes).

    1 - (sum of all stages' busy time) / (stages * time of the step), over all pipelines. The time
    of a step is the first stage's, which begins and ends it. Loading, the averaging of gradients
    and the optimizer are not in it. None if there was no step.
    """
    available = place.stages * times.lasted if place.is_first else 0.0
    sums = torch.tensor([times.busy, available], dtype=torch.float64, device=device)
    busy, available = sum_over_processes(sums).tolist()
    return 1 - busy / available if available else None


def ideal_bubble(stages: int, microbatches: int) -> float:
    """The share of a step in which p stages of equal cost stand idle: (p - 1) / (m + p - 1)."""
    return (stages - 1) / (microbatches + stages - 1)


def gather_parts(mine: dict[str, Tensor], place: Place) -> dict[str, Tensor] | None:
    """The tensors of all stages, by name and in CPU memory, on the main process; else None.

    A collective of the first pipeline; the others, whose tensors are the same, pass through.
    """
    if place.replica != 0:
        return None
    mine = {name: tensor.detach().cpu() for name, tensor in mine.items()}
    parts: list[Any] | None = [None] * place.stages if place.is_first else None
    # Not over the devices' own group, whose messages would need room on the first device.
    dist.gather_object(mine, parts, dst=0, group=place.on_host)
    return parts and {name: tensor for part in parts for name, tensor in part.items()}
