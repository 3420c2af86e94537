"""The options of ``train_pipeline.py``."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.fields import data_option, length_option, model_option, optimisation_option
from engine.options import CommonOptions
from errors import UserError


@dataclass
class PipelineOptions(CommonOptions):
    """Options of a network cut over several devices, beside those of every script."""

    task: ClassVar[str] = "classification"

    image_column: str = data_option("image", "name of the image column", datasets=("hub", "csv"))
    label_column: str = data_option("label", "name of the label column", datasets=("hub", "csv"))
    skip_unlabelled: bool = data_option(
        False, "leave out samples without a label, refused else", datasets=("csv", "hub")
    )
    model: str = model_option("resnet50", "one of torchvision's ResNets, or syncbnnet, _s, _m, _l")
    weights: str = model_option("none", "none, default (pretrained, downloaded) or a file")
    image_size: int = model_option(64, "height and width of the images", at_least=16)
    stages: int = model_option(
        0,
        "stages of a pipeline (0: as --split_at says, or one per process)",
        at_least=0,
        resume="free",
    )
    split_at: str | list[str] | None = model_option(
        None,
        "layers before which to cut, e.g. layer3 or layer2,layer4 (default: by --balance)",
        resume="free",
    )
    balance: Literal["parameters", "compute"] = model_option(
        "parameters",
        "what the stages get equal shares of, as far as whole blocks allow",
        resume="free",
    )
    batch_size: int = length_option(
        32, "samples per optimizer step, over all processes", at_least=1
    )
    microbatches: int = length_option(
        4, "parts of a pipeline's batch that follow one another (1: naive)", at_least=1
    )
    schedule: Literal["gpipe", "1f1b"] = length_option(
        "gpipe",
        "all forwards first, or each backward as soon as it can: less memory",
        resume="free",
    )
    lr: float = optimisation_option(
        0.02, "learning rate at the start; falls to 0 along half a cosine", at_least=0
    )
    weight_decay: float = optimisation_option(
        1e-4, "weight decay, not of norm layers and biases", at_least=0
    )

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        if self.stages and self.cuts and len(self.cuts) + 1 != self.stages:
            raise UserError(
                f"--split_at {','.join(self.cuts)} makes {len(self.cuts) + 1} stages, not "
                f"{self.stages}: leave --stages out."
            )

    def check_launch(self, processes: int, on_cpu: bool, precision: str) -> None:
        """Refuse processes or samples that don't divide, and fp16."""
        super().check_launch(processes, on_cpu, precision)
        if precision not in ("no", "bf16"):
            raise UserError(
                f"Mixed precision {precision} needs one loss scale for all stages, which this "
                "script doesn't have; launch with --mixed_precision no or bf16."
            )
        stages = self.count_stages(processes)
        if processes % stages:
            raise UserError(
                f"{processes} process{'es' if processes > 1 else ''} can't form pipelines of "
                f"{stages} stages: launch {stages} or a multiple, as torchrun --nproc_per_node="
                f"{stages} or accelerate launch --num_processes {stages}, or give another --stages."
            )
        replicas = processes // stages
        parts = replicas * self.microbatches
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            near = f"{below} or {below + parts}" if below else f"{parts}"
            raise UserError(
                f"--batch_size {self.batch_size} does not divide into {replicas} pipeline"
                f"{'s' if replicas > 1 else ''} x {self.microbatches} micro-batches; use {near}."
            )
        if self.schedule == "1f1b" and self.microbatches < stages:
            raise UserError(
                f"--schedule 1f1b needs as many micro-batches as stages, and --microbatches is "
                f"{self.microbatches} for {stages} stages: use --microbatches {stages} or more, or "
                "--schedule gpipe."
            )

    def count_stages(self, processes: int) -> int:
        """Stages per pipeline, in a job of so many processes."""
        return self.stages or (len(self.cuts) + 1 if self.cuts else processes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.image_size, self.image_size

    @property
    def cuts(self) -> list[str]:
        """The layers of --split_at."""
        given = self.split_at or []
        return [part.strip() for part in given.split(",")] if isinstance(given, str) else given
