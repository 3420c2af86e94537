"""The options of image classification."""

from dataclasses import dataclass
from typing import Literal

from engine.options import TrainingOptions, check_color_jitter, color_jitter_option, option


@dataclass
class ClassificationOptions(TrainingOptions):
    """Options of classification, beside those of every script."""

    image_column: str = option("image", "name of the image column", "data", datasets=("hub",))
    label_column: str = option("label", "name of the label column", "data", datasets=("hub",))
    model: str = option("syncbnnet", "classifier; docs/models.md lists them", "model")
    image_size: list[int] = option(
        [48, 48], "height and width of the network's input", "model", length=2, at_least=8
    )
    epochs: float = option(
        20,
        "length of training in passes over the data",
        "batch and length",
        at_least=0,
        resume="free",
    )
    weight_decay: float = option(0.05, "weight decay", "optimisation", at_least=0)
    label_smoothing: float = option(
        0.0,
        "share of the target spread over all classes",
        "optimisation",
        at_least=0,
        at_most=1,
    )
    crop_area: list[float] = option(
        [0.35, 1.0],
        "smallest and largest share of the image's area in a random crop",
        "augmentation",
        length=2,
        above=0,
        at_most=1,
        ascending=True,
    )
    crop_padding: int | None = option(
        None,
        "instead of resized crops, shift the padded image by up to this many pixels",
        "augmentation",
        at_least=0,
    )
    hflip: float = option(
        0.5, "probability of a horizontal flip", "augmentation", at_least=0, at_most=1
    )
    auto_augment: Literal["none", "rand_augment", "trivial_augment"] = option(
        "none", "policy of random operations", "augmentation"
    )
    color_jitter: list[float] = color_jitter_option([0.0, 0.0, 0.0, 0.0])
    erasing: float = option(
        0.0, "probability of erasing a window", "augmentation", at_least=0, at_most=1
    )
    mixup: float = option(0.0, "alpha of mixup (0: off, usual 0.2)", "augmentation", at_least=0)
    cutmix: float = option(0.0, "alpha of CutMix (0: off, usual 1)", "augmentation", at_least=0)
    crop_ratio: float = option(
        0.875,
        "share of the image's side that evaluation looks at (1: all of it)",
        "evaluation and files",
        above=0,
        at_most=1,
    )
    pictures: int = option(
        18,
        "misclassified images drawn at each evaluation",
        "evaluation and files",
        at_least=0,
        resume="free",
    )

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        check_color_jitter(self.color_jitter)
