"""The options of segmentation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.fields import (
    SHARE,
    augmentation_option,
    data_option,
    evaluation_option,
    length_option,
    model_option,
    optimisation_option,
)
from engine.options import (
    TrainingOptions,
    color_jitter_option,
    eval_overlap_option,
    eval_tile_option,
)
from errors import UserError

OUTLINES = ("coco", "yolo", "labelme")  # data sources whose masks are drawn from outlines
WEIGHTINGS = ("none", "median_frequency")


@dataclass
class SegmentationOptions(TrainingOptions):
    """Options of segmentation, beside those of every script."""

    task: ClassVar[str] = "segmentation"

    class_names: str | list[str] | None = data_option(
        None,
        "class names in order, or a file of them",
        datasets=("folder", "hub", *OUTLINES),
        resume="free",
    )
    exif: Literal["turn", "ignore"] = data_option(
        "turn",
        "what to do with images whose EXIF says how to turn them: as the outlines were drawn",
        datasets=OUTLINES,
    )
    image_column: str = data_option("image", "name of the image column", datasets=("hub",))
    mask_column: str = data_option("annotation", "name of the mask column", datasets=("hub",))
    resize_masks: bool = data_option(
        False,
        "resize masks of another size than their images', if the proportions agree",
        datasets=("folder", "camvid", "voc", "cityscapes", "ade20k", "hub"),
    )
    skip_unlabelled: bool = data_option(
        False,
        "leave out images without a mask or label, which are refused else",
        datasets=("folder", "hub", *OUTLINES),
    )
    image_size: list[int] = data_option(
        [96, 96], "height and width of the images", length=2, at_least=16, datasets=("synthetic",)
    )
    model: str = model_option("unet", "segmentation model; docs/models.md lists them")
    backbone: str = model_option("syncbnnet", "of unet and deeplabv3plus: syncbnnet or timm/<name>")
    aux_loss: float = model_option(
        0.0, "weight of the auxiliary head's loss (0: no such head)", at_least=0
    )
    batch_size: int = length_option(
        4, "samples per process and forward pass", at_least=1, resume="free"
    )
    warmup_steps: int = optimisation_option(20, "optimizer steps of linear warm-up", at_least=0)
    loss: Literal["ce", "ce_dice"] = optimisation_option(
        "ce", "cross entropy, or that plus soft Dice"
    )
    class_weights: str | list[float] = optimisation_option(
        "none", "none, median_frequency, or a weight per class as [1, 2.5, ...]"
    )
    crop_size: list[int] = augmentation_option(
        [96, 96], "height and width of the training crops", length=2, at_least=16
    )
    scale_range: list[float] = augmentation_option(
        [0.5, 2.0], "smallest and largest random scaling", length=2, above=0, ascending=True
    )
    hflip: float = augmentation_option(0.5, "probability of a horizontal flip", **SHARE)
    color_jitter: list[float] = color_jitter_option([0.4, 0.4, 0.4, 0.0])
    eval_size: list[int] | None = evaluation_option(
        None,
        "resize validation images to this height and width; masks keep their own size",
        length=2,
        at_least=16,
    )
    eval_tile: int = eval_tile_option()
    eval_overlap: float = eval_overlap_option()
    pictures: int = evaluation_option(
        4, "validation images drawn at each evaluation", at_least=0, resume="free"
    )

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: names the option, its value and the range.
        """
        super().check()
        if isinstance(self.class_weights, str):
            if self.class_weights not in WEIGHTINGS:
                raise UserError(
                    f"--class_weights is {self.class_weights!r}; give {', '.join(WEIGHTINGS)} or a "
                    "list with a weight per class."
                )
        elif min(self.class_weights, default=0) < 0 or not any(self.class_weights):
            raise UserError(
                f"--class_weights is {self.class_weights}; give a weight per class, none of them "
                "negative and not all of them 0."
            )
