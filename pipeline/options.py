"""The options of ``train_pipeline.py``."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.options import CommonOptions, option
from errors import UserError


@dataclass
class PipelineOptions(CommonOptions):
    """Options of a network cut over several devices, beside those of every script."""

    image_column: str = option("image", "name of the image column", "data", datasets=("hub",))
    label_column: str = option("label", "name of the label column", "data", datasets=("hub",))
    model: str = option(
        "resnet50", "one of torchvision's ResNets, or syncbnnet, _s, _m, _l", "model"
    )
    weights: str = option("none", "none, default (pretrained, downloaded) or a file", "model")
    image_size: int = option(64, "height and width of the images", "model", at_least=16)
    stages: int = option(
        0,
        "stages of a pipeline (0: as --split_at says, or one per process)",
        "model",
        at_least=0,
    )
    split_at: str | list[str] | None = option(
        None,
        "layers before which to cut, e.g. layer3 or layer2,layer4 (default: by --balance)",
        "model",
    )
    balance: Literal["parameters", "compute"] = option(
        "parameters",
        "what the stages get equal shares of, as far as whole blocks allow",
        "model",
    )
    batch_size: int = option(
        32, "samples per optimizer step, over all processes", "batch and length", at_least=1
    )
    microbatches: int = option(
        4,
        "parts of a pipeline's batch that follow one another (1: naive)",
        "batch and length",
        at_least=1,
    )
    schedule: Literal["gpipe", "1f1b"] = option(
        "gpipe",
        "all forwards first, or each backward as soon as it can: less memory",
        "batch and length",
    )
    lr: float = option(
        0.02,
        "learning rate at the start; falls to 0 along half a cosine",
        "optimisation",
        at_least=0,
    )
    weight_decay: float = option(
        1e-4, "weight decay, not of norm layers and biases", "optimisation", at_least=0
    )

    # What the launch and the report ask every script for.
    sync_bn_impl: ClassVar[str] = "own"
    eval_only: ClassVar[bool] = False
    check_data: ClassVar[bool] = False
    global_batch_size: ClassVar[int] = 0

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        if self.stages and self.cuts and len(self.cuts) + 1 != self.stages:
            raise UserError(
                f"--split_at {','.join(self.cuts)} makes {len(self.cuts) + 1} stages, not "
                f"{self.stages}: leave --stages out."
            )

    @property
    def cuts(self) -> list[str]:
        """The layers of --split_at."""
        given = self.split_at or []
        return [part.strip() for part in given.split(",")] if isinstance(given, str) else given
