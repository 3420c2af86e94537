"""The options of predict.py."""

from dataclasses import dataclass
from typing import Literal

from engine.fields import (
    SHARE,
    Options,
    input_option,
    output_option,
    prediction_option,
    weights_option,
)
from engine.options import SMALLEST_TILE
from errors import UserError

SAVED = ("pictures", "masks", "rle", "coco", "yolo", "voc", "curves")


@dataclass
class PredictOptions(Options):
    """Options of predict.py."""

    weights: str = weights_option("", "a run's folder, a .safetensors or .onnx file, or hub:NAME")
    task: Literal["", "segmentation", "detection", "video", "classification"] = weights_option(
        "", "of weights that don't say what they are"
    )
    model: str = weights_option("", "the model of such weights")
    class_names: str | list[str] | None = weights_option(
        None, "the class names of such weights, in order, or a file of them"
    )
    model_options: list[str] = weights_option(
        [], "options of such weights' training script, as backbone=timm/resnet18"
    )
    input: str | list[str] = input_option(
        "", "pictures, videos, a folder, a glob, a list .txt, a camera's number, or -"
    )
    dataset: str = input_option("", "instead of --input, a data set as in training; is scored")
    data_dir: str | None = input_option(None, "folder of the data set")
    split: Literal["train", "val"] = input_option("val", "which part of the data set")
    data_options: list[str] = input_option(
        [], "more of the data set's options, as image_column=img"
    )
    num_workers: int | Literal["auto"] = input_option(
        "auto", "loader workers per process (0: load in the loop)", at_least=0
    )
    max_frames: int = input_option(
        0, "stop after so many frames of a video or camera (0: at its end)", at_least=0
    )
    batch_size: int = prediction_option(8, "inputs of one shape at a time", at_least=1)
    precision: Literal["", "no", "bf16", "fp16"] = prediction_option(
        "", "of the arithmetic (default: the launcher's --mixed_precision)"
    )
    compile: bool = prediction_option(False, "torch.compile the network")
    cpu: bool = prediction_option(False, "use the CPU although there is a GPU")
    tile: int | None = prediction_option(
        None,
        "cut pictures into squares of so many pixels (0: whole; default: as evaluation did)",
        at_least=0,
    )
    overlap: float | None = prediction_option(
        None,
        "share of a tile that the next one shows too (default: as evaluation did, or 0.25)",
        at_least=0,
        at_most=0.5,
    )
    tta: list[str] = prediction_option(
        [], "average over flip and scales, e.g. flip 0.75 1.25 (docs/predict.md)"
    )
    every: float = prediction_option(
        0.0, "seconds between clips slid over a whole video, with a curve (0: no)", at_least=0
    )
    top: int = prediction_option(5, "classes per input of a classifier", at_least=1)
    score: float = prediction_option(
        0.3, "lowest score of a detection that is drawn, counted or saved for correction", **SHARE
    )
    output: str = output_option("", "folder to write to")
    save: list[str] = output_option(
        [], f"what to write beside the tables, of {', '.join(SAVED)} (default: by task)"
    )
    skip_done: bool = output_option(False, "go on in --output with the inputs not done yet")

    def check(self) -> None:
        """Refuse values out of range, and a command without weights, input or output."""
        super().check()
        for name, what in (("weights", "runs/mine"), ("output", "out")):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing; give it, such as --{name} {what}.")
        if bool(self.input) == bool(self.dataset):
            raise UserError(
                "Give either --input, such as a folder of pictures, or --dataset with --data_dir."
            )
        if not self.dataset:
            for name in ("data_dir", "data_options", "split"):
                if getattr(self, name) not in (None, [], "val"):
                    raise UserError(f"--{name} is for --dataset; give that, or leave it out.")
        unknown = [name for name in self.save if name not in SAVED]
        if unknown:
            raise UserError(f"--save takes {', '.join(SAVED)}, and not {unknown[0]}.")
        if self.tile and self.tile < SMALLEST_TILE:
            raise UserError(
                f"--tile is {self.tile}; give at least {SMALLEST_TILE}, or 0 for whole pictures."
            )

    def check_launch(self, processes: int, on_cpu: bool, precision: str) -> None:
        """Refuse a precision that the device doesn't have."""
        if on_cpu and self.precision == "fp16":
            raise UserError("--precision fp16 needs a GPU; use bf16 or no.")
        if precision == "fp8":
            raise UserError("Predictions have no fp8; launch with --mixed_precision bf16.")
