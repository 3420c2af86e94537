"""The options of image classification."""

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
from engine.options import TrainingOptions, color_jitter_option


@dataclass
class ClassificationOptions(TrainingOptions):
    """Options of classification, beside those of every script."""

    task: ClassVar[str] = "classification"

    image_column: str = data_option("image", "name of the image column", datasets=("hub", "csv"))
    label_column: str = data_option("label", "name of the label column", datasets=("hub", "csv"))
    skip_unlabelled: bool = data_option(
        False, "leave out samples without a label, refused else", datasets=("csv", "hub")
    )
    balance_classes: bool = data_option(
        False, "see a class in proportion to the square root of its number of images"
    )
    model: str = model_option("syncbnnet", "classifier; docs/models.md lists them")
    image_size: list[int] = model_option(
        [48, 48], "height and width of the network's input", length=2, at_least=8
    )
    epochs: float = length_option(
        20, "length of training in passes over the data", at_least=0, resume="free"
    )
    weight_decay: float = optimisation_option(0.05, "weight decay", at_least=0)
    label_smoothing: float = optimisation_option(
        0.0, "share of the target spread over all classes", **SHARE
    )
    crop_area: list[float] = augmentation_option(
        [0.35, 1.0],
        "smallest and largest share of the image's area in a random crop",
        length=2,
        above=0,
        at_most=1,
        ascending=True,
    )
    crop_padding: int | None = augmentation_option(
        None,
        "instead of resized crops, shift the padded image by up to this many pixels",
        at_least=0,
        at_most=1024,
    )
    hflip: float = augmentation_option(0.5, "probability of a horizontal flip", **SHARE)
    auto_augment: Literal["none", "rand_augment", "trivial_augment"] = augmentation_option(
        "none", "policy of random operations"
    )
    color_jitter: list[float] = color_jitter_option([0.0, 0.0, 0.0, 0.0])
    erasing: float = augmentation_option(0.0, "probability of erasing a window", **SHARE)
    mixup: float = augmentation_option(0.0, "alpha of mixup (0: off, usual 0.2)", at_least=0)
    cutmix: float = augmentation_option(0.0, "alpha of CutMix (0: off, usual 1)", at_least=0)
    crop_ratio: float = evaluation_option(
        0.875,
        "share of the image's side that evaluation looks at (1: all of it)",
        at_least=0.1,
        at_most=1,
    )
    pictures: int = evaluation_option(
        18, "misclassified images drawn at each evaluation", at_least=0, resume="free"
    )
