"""The options of video classification."""

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
from errors import UserError


@dataclass
class VideoOptions(TrainingOptions):
    """Options of video classification, beside those of every script."""

    task: ClassVar[str] = "video"

    split: Literal[1, 2, 3] = data_option(1, "which official split", datasets=("ucf101", "hmdb51"))
    video_column: str = data_option("video", "name of the video column", datasets=("hub",))
    label_column: str = data_option("label", "name of the label column", datasets=("hub",))
    skip_unlabelled: bool = data_option(
        False, "leave out samples without a label, refused else", datasets=("hub",)
    )
    decoder: Literal["auto", "pyav", "torchcodec"] = data_option(
        "auto", "what decodes video files", resume="free"
    )
    balance_classes: bool = data_option(
        False, "see a class in proportion to the square root of its number of videos"
    )
    model: str = model_option("syncbnnet3d", "video classifier; docs/models.md lists them")
    clip_frames: int = model_option(8, "frames per clip", at_least=1)
    frame_stride: int = model_option(
        2, "distance in the video between consecutive frames of a clip", at_least=1
    )
    fps: float | None = model_option(
        None, "frames per second of the clip, instead of a stride", above=0
    )
    crop_size: list[int] = model_option(
        [56, 56], "height and width of the network's input", length=2, at_least=16
    )
    batch_size: int = length_option(
        4, "samples per process and forward pass", at_least=1, resume="free"
    )
    epochs: float = length_option(
        25, "length of training in passes over the data", at_least=0, resume="free"
    )
    weight_decay: float = optimisation_option(0.05, "weight decay", at_least=0)
    label_smoothing: float = optimisation_option(
        0.0, "share of the target spread over all classes", **SHARE
    )
    short_side: list[int] = augmentation_option(
        [56, 64],
        "smallest and largest length of the shorter side before a crop in training",
        length=2,
        at_least=1,
        at_most=8192,
        ascending=True,
    )
    crop_area: list[float] | None = augmentation_option(
        None,
        "smallest and largest share of the frame's area in a resized crop, instead of short_side",
        length=2,
        above=0,
        at_most=1,
        ascending=True,
    )
    hflip: float = augmentation_option(
        0.0,
        "probability of a horizontal flip; not where directions matter, as in synthetic",
        **SHARE,
    )
    color_jitter: list[float] = color_jitter_option([0.0, 0.0, 0.0, 0.0])
    eval_short_side: int = evaluation_option(
        56, "length of the shorter side in evaluation", at_least=1, at_most=8192
    )
    eval_clips: int = evaluation_option(
        1, "clips per video in evaluation, evenly spaced", at_least=1
    )
    eval_crops: Literal[1, 3] = evaluation_option(
        1, "windows per clip in evaluation: middle, or three"
    )
    pictures: int = evaluation_option(
        6, "validation clips drawn at each evaluation", at_least=0, resume="free"
    )

    def check(self) -> None:
        """Refuse values out of range, and windows that don't fit into the resized frames."""
        super().check()
        shortest = {"eval_short_side": self.eval_short_side}
        if self.crop_area is None:
            shortest["short_side"] = self.short_side[0]
        for name, pixels in shortest.items():
            if pixels < max(self.crop_size):
                height, width = self.crop_size
                raise UserError(
                    f"Windows of --crop_size {height} {width} don't fit into frames whose shorter "
                    f"side is {pixels} pixels long: give a larger --{name} or a smaller window."
                )
