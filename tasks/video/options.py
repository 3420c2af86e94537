"""The options of video classification."""

from dataclasses import dataclass
from typing import Literal

from engine.options import TrainingOptions, check_color_jitter, color_jitter_option, option
from errors import UserError


@dataclass
class VideoOptions(TrainingOptions):
    """Options of video classification, beside those of every script."""

    split: Literal[1, 2, 3] = option(1, "which official split", "data", datasets=("ucf101",))
    video_column: str = option("video", "name of the video column", "data", datasets=("hub",))
    label_column: str = option("label", "name of the label column", "data", datasets=("hub",))
    decoder: Literal["auto", "pyav", "torchcodec"] = option(
        "auto", "what decodes video files", "data", resume="free"
    )
    model: str = option("syncbnnet3d", "video classifier; docs/models.md lists them", "model")
    clip_frames: int = option(8, "frames per clip", "model", at_least=1)
    frame_stride: int = option(
        2, "distance in the video between consecutive frames of a clip", "model", at_least=1
    )
    fps: float | None = option(
        None, "frames per second of the clip, instead of a stride", "model", above=0
    )
    crop_size: list[int] = option(
        [56, 56], "height and width of the network's input", "model", length=2, at_least=16
    )
    batch_size: int = option(
        4,
        "samples per process and forward pass",
        "batch and length",
        at_least=1,
        resume="free",
    )
    epochs: float = option(
        25,
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
    short_side: list[int] = option(
        [56, 64],
        "smallest and largest length of the shorter side before a crop in training",
        "augmentation",
        length=2,
        ascending=True,
    )
    crop_area: list[float] | None = option(
        None,
        "smallest and largest share of the frame's area in a resized crop, instead of short_side",
        "augmentation",
        length=2,
        above=0,
        at_most=1,
        ascending=True,
    )
    hflip: float = option(
        0.0,
        "probability of a horizontal flip; not where directions matter, as in synthetic",
        "augmentation",
        at_least=0,
        at_most=1,
    )
    color_jitter: list[float] = color_jitter_option([0.0, 0.0, 0.0, 0.0])
    eval_short_side: int = option(
        56, "length of the shorter side in evaluation", "evaluation and files"
    )
    eval_clips: int = option(
        1, "clips per video in evaluation, evenly spaced", "evaluation and files", at_least=1
    )
    eval_crops: Literal[1, 3] = option(
        1, "windows per clip in evaluation: middle, or three", "evaluation and files"
    )
    pictures: int = option(
        6,
        "validation clips drawn at each evaluation",
        "evaluation and files",
        at_least=0,
        resume="free",
    )

    def check(self) -> None:
        """Refuse values out of range, and windows that don't fit into the resized frames."""
        super().check()
        check_color_jitter(self.color_jitter)
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
