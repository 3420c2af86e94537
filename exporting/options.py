"""The options of export.py."""

from dataclasses import dataclass
from typing import Literal

from engine.fields import Options, file_option, weights_option
from errors import UserError

OPSET = 20  # of ONNX


@dataclass
class ExportOptions(Options):
    """Options of export.py."""

    weights: str = weights_option("", "a run's folder, a .safetensors file, or hub:NAME")
    format: Literal["onnx", "torch_export"] = file_option("onnx", "what to write")
    output: str = file_option("", "the file (default: model.onnx or model.pt2 beside the weights)")
    input_type: Literal["float", "uint8"] = file_option(
        "float", "scaled pixels, or bytes that the file scales itself"
    )
    nms: bool = file_option(
        True, "non-maximum suppression inside a detector, which then takes one image at a time"
    )
    fold: bool = file_option(True, "fold BatchNorm into the convolutions before it")
    size: list[int] | None = file_option(
        None,
        "height and width of the example (default: that of evaluation, or 512 512)",
        length=2,
        at_least=32,
    )
    opset: int = file_option(OPSET, "version of ONNX's operators", at_least=18, at_most=23)
    picture: str | None = file_option(
        None, "a real picture or video to check with (default: one drawn here)"
    )
    tolerance: float = file_option(
        1e-3, "largest difference of an output, relative to the largest value", above=0
    )
    overwrite: bool = file_option(False, "replace --output if it is there")

    def check(self) -> None:
        """Refuse values out of range, and a command without weights."""
        super().check()
        if not self.weights:
            raise UserError("--weights is missing; give it, such as --weights runs/mine.")
        suffix = ".onnx" if self.format == "onnx" else ".pt2"
        if self.format != "onnx" and self.opset != OPSET:
            raise UserError("--opset is for --format onnx; leave it out.")
        if self.output and not self.output.endswith(suffix):
            raise UserError(
                f"--output is {self.output}; with --format {self.format} end it in {suffix}."
            )
