"""An ONNX file of export.py as a network: onnxruntime behind the interface of the eager one."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.about import KEY, About, parse_about
from errors import UserError
from models.detector_interface import Detections
from models.yolo import select_detections

INSTALL = "pip install -r requirements-export.txt"
NOTHING = -1  # label in place of an object
FORM = "form"  # the metadata's entry beside the description


def require(*packages: str) -> Any:
    """Import packages that only exported files need; the first is returned.

    Raises:
        UserError: one isn't installed.
    """
    try:
        return next(importlib.import_module(package) for package in packages)
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}, which isn't installed: {INSTALL}") from None


class OnnxNetwork(nn.Module):
    """A file run by onnxruntime.

    Args:
        session: onnxruntime's.
        form: what export.py says of the file: "bytes_in", "task", "threshold", "most".

    Attributes:
        bytes_in: whether it takes bytes instead of scaled pixels.
    """

    def __init__(self, session: Any, form: dict[str, Any]) -> None:
        super().__init__()
        self.session, self.form, self.bytes_in = session, form, form["bytes_in"]
        self.one_by_one = session.get_inputs()[0].shape[0] == 1

    def forward(self, images: Tensor) -> Any:
        """What the eager network returns: {"out": logits}, logits, or a list of Detections."""
        parts = images.split(1) if self.one_by_one else [images]
        found = [self._run(part) for part in parts]
        if self.form["task"] == "detection":
            limits = self.form["threshold"], self.form["most"]
            size = tuple(images.shape[-2:])
            return [each for outputs in found for each in as_detections(outputs, size, *limits)]
        logits = torch.cat([outputs[0] for outputs in found])
        return {"out": logits} if self.form["task"] == "segmentation" else logits

    def _run(self, images: Tensor) -> list[Tensor]:
        values = images.contiguous().cpu()
        values = values if self.bytes_in else values.float()
        try:
            found = self.session.run(None, {self.session.get_inputs()[0].name: values.numpy()})
        except Exception as error:  # onnxruntime has a type of its own for each reason
            raise RuntimeError(str(error)) from None
        return [torch.from_numpy(np.ascontiguousarray(each)).to(images.device) for each in found]


def as_detections(
    outputs: list[Tensor], size: tuple[int, int], threshold: float, most: int
) -> list[Detections]:
    """What an exported detector returned, as detectors do: a Detections for each image."""
    if len(outputs) == 2:
        limits = {"score_threshold": threshold, "max_detections": most}
        pairs = zip(*outputs, strict=True)
        return [select_detections(boxes, scores, size, **limits) for boxes, scores in pairs]
    alone = zip(outputs, (2, 1, 1), strict=True)  # without the dimension of one image
    boxes, scores, labels = (out[0] if out.ndim > dims else out for out, dims in alone)
    there = labels != NOTHING
    return [{"boxes": boxes[there], "scores": scores[there], "labels": labels[there]}]


def open_session(path: Path, threads: int = 0) -> Any:
    """onnxruntime's session of a file, on a GPU where it can."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(
            str(path), options, providers=runtime.get_available_providers()
        )
    except Exception as error:  # of onnxruntime's own types
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} can't be run as ONNX ({reason}): export it again.") from None


def read_onnx(path: Path) -> tuple[About, OnnxNetwork]:
    """What an ONNX file says about itself, and its network.

    Raises:
        UserError: onnxruntime isn't installed, or export.py didn't write the file.
    """
    session = open_session(path)
    stored = session.get_modelmeta().custom_metadata_map
    if KEY not in stored or FORM not in stored:
        raise UserError(
            f"{path} doesn't say what it is: make it with export.py, which writes classes, size "
            "and scaling into the file."
        )
    return parse_about(stored[KEY], str(path)), OnnxNetwork(session, json.loads(stored[FORM]))
