"""The options of segmentation."""

from dataclasses import dataclass
from typing import Literal

from engine.options import TrainingOptions, check_color_jitter, color_jitter_option, option
from errors import UserError

WEIGHTINGS = ("none", "median_frequency")


@dataclass
class SegmentationOptions(TrainingOptions):
    """Options of segmentation, beside those of every script."""

    class_names: str | list[str] | None = option(
        None,
        "class names in order, or a file of them",
        "data",
        resume="free",
        datasets=("folder", "hub"),
    )
    image_column: str = option("image", "name of the image column", "data", datasets=("hub",))
    mask_column: str = option("annotation", "name of the mask column", "data", datasets=("hub",))
    image_size: list[int] = option(
        [96, 96],
        "height and width of the images",
        "data",
        length=2,
        at_least=16,
        datasets=("synthetic",),
    )
    model: str = option("unet", "segmentation model; docs/models.md lists them", "model")
    backbone: str = option(
        "syncbnnet", "of unet and deeplabv3plus: syncbnnet or timm/<name>", "model"
    )
    aux_loss: float = option(
        0.0, "weight of the auxiliary head's loss (0: no such head)", "model", at_least=0
    )
    batch_size: int = option(
        4,
        "samples per process and forward pass",
        "batch and length",
        at_least=1,
        resume="free",
    )
    warmup_steps: int = option(20, "optimizer steps of linear warm-up", "optimisation", at_least=0)
    loss: Literal["ce", "ce_dice"] = option(
        "ce", "cross entropy, or that plus soft Dice", "optimisation"
    )
    class_weights: str | list[float] = option(
        "none", "none, median_frequency, or a weight per class as [1, 2.5, ...]", "optimisation"
    )
    crop_size: list[int] = option(
        [96, 96], "height and width of the training crops", "augmentation", length=2, at_least=16
    )
    scale_range: list[float] = option(
        [0.5, 2.0],
        "smallest and largest random scaling",
        "augmentation",
        length=2,
        above=0,
        ascending=True,
    )
    hflip: float = option(
        0.5, "probability of a horizontal flip", "augmentation", at_least=0, at_most=1
    )
    color_jitter: list[float] = color_jitter_option([0.4, 0.4, 0.4, 0.0])
    eval_size: list[int] | None = option(
        None,
        "resize validation images to this height and width; scored at the label's own",
        "evaluation and files",
        length=2,
        at_least=16,
    )
    pictures: int = option(
        4,
        "validation images drawn at each evaluation",
        "evaluation and files",
        at_least=0,
        resume="free",
    )

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: names the option, its value and the range.
        """
        super().check()
        check_color_jitter(self.color_jitter)
        if isinstance(self.class_weights, str):
            if self.class_weights not in WEIGHTINGS:
                raise UserError(
                    f"--class_weights is {self.class_weights!r}; give {', '.join(WEIGHTINGS)} or a "
                    "list with a weight per class."
                )
        elif not (min(self.class_weights) >= 0 and max(self.class_weights) > 0):
            raise UserError(
                f"--class_weights is {self.class_weights}; no weight may be negative, and not all "
                "may be 0."
            )
