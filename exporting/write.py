"""From a trained model to a file: exported, run, compared, and kept only if it agrees."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

from data import synthetic
from engine.about import KEY
from errors import UserError
from exporting.check import (
    as_list,
    difference_of_objects,
    largest_difference,
    milliseconds,
)
from exporting.folding import fold_batch_norm
from exporting.forms import Candidates, Plain, form_of, output_names
from exporting.layers import watched
from exporting.options import ExportOptions
from inference.onnx_network import FORM, as_detections, open_session, require
from inference.trained import Trained
from models.find_weights import find_weights

USUAL_SIZE = (512, 512)
SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """What came of an export, for the report.

    Attributes:
        path: of the file.
        folded: layers of BatchNorm that are part of convolutions now.
        dynamic: which sizes may vary: "batch", "height and width".
        differences: of the outputs, by the name of the input.
        megabytes: of the file, and of the weights that it was made of.
        milliseconds: of one input, eager and exported.
    """

    path: Path
    folded: int
    dynamic: list[str]
    differences: dict[str, float]
    megabytes: tuple[float, float]
    milliseconds: tuple[float, float]

    def lines(self) -> list[str]:
        """The report."""
        shown = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        eager, exported = self.milliseconds
        return [
            f"{self.path}: {self.megabytes[0]:.2f} MB (weights {self.megabytes[1]:.2f} MB)",
            f"  may vary: {', '.join(self.dynamic) or 'nothing'}; "
            f"BatchNorm folded into {self.folded} convolutions",
            f"  largest difference, relative: {shown}",
            f"  one input: eager {eager:.1f} ms, exported {exported:.1f} ms "
            f"({torch.get_num_threads()} threads)",
        ]


def export(model: Trained, options: ExportOptions) -> Exported:
    """Write the file that the options ask for.

    Raises:
        UserError: the network or its form can't be exported, a package is missing, the file is
            there already, can't be written, or computes something else than the network.
    """
    path = _target(options)
    if options.format == "onnx":
        require("onnx", "onnxscript", "onnxruntime")
    inference = model.inference
    model.use_tiles(0)  # the network sees one at a time; whoever runs the file cuts the picture
    if not options.nms and inference.task != "detection":
        raise UserError(f"--no_nms is for detection, and not for {inference.task}; leave it out.")
    bytes_in = options.input_type == "uint8"
    form = form_of(inference, model.network, bytes_in, options.nms).eval()
    examples = _examples(model, options, bytes_in)
    program, dynamic = _traced(form, examples["random"], inference.task)
    folded = 0
    if options.fold:
        network, folded = fold_batch_norm(form, program)
        if folded:
            program, dynamic = _traced(network, examples["random"], inference.task)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    about = model.about.to_header()[KEY]
    stored = {
        KEY: about,
        FORM: json.dumps(
            {
                "task": inference.task,
                "bytes_in": bytes_in,
                "threshold": 0.001,
                "most": getattr(inference.options, "max_detections", 0),
                "dynamic": dynamic,
            }
        ),
    }
    try:
        run = _write(program, beside, form, options, stored)
        differences = {}
        with torch.inference_mode():
            for name, images in examples.items():
                differences[name] = _compare(form, run, images)
            if "batch" in dynamic:
                both = torch.cat([examples["random"], examples["real"]])
                differences["both"] = _compare(form, run, both)
            worst = max(differences.values())
            if not worst <= options.tolerance:
                raise UserError(
                    f"The exported file computes something else: its outputs differ by "
                    f"{worst:.1e}, more than --tolerance {options.tolerance:g}; it was not kept."
                )
            times = tuple(milliseconds(each, examples["real"]) for each in (form, run))
        os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}); give another --output."
        ) from None
    finally:
        beside.unlink(missing_ok=True)
    sizes = path.stat().st_size / 1e6, find_weights(options.weights).stat().st_size / 1e6
    return Exported(path, folded, dynamic, differences, sizes, times)


def _compare(form: Plain, run: Any, images: Tensor) -> float:
    """The largest difference between what the network and its file make of images."""
    eager, exported = as_list(form(images)), as_list(run(images))
    if len(eager) < 3:
        return largest_difference(eager, exported)
    found = (as_detections(each, (0, 0), 0, 0)[0] for each in (eager, exported))
    return difference_of_objects(*found)


def _target(options: ExportOptions) -> Path:
    beside = find_weights(options.weights).parent / f"model{SUFFIX[options.format]}"
    path = Path(options.output) if options.output else beside
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} is there already: add --overwrite, or give another --output.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent}: make it, or give another --output.")
    return path


def _examples(model: Trained, options: ExportOptions, bytes_in: bool) -> dict[str, Tensor]:
    """Inputs to check with: random pixels and a real picture, (1, 3, [T,] H, W)."""
    inference = model.inference
    resized = inference.task != "segmentation" or inference.options.eval_size
    if options.size and (resized or options.picture):
        why = "--picture has its own" if options.picture else "the model has its own"
        raise UserError(f"--size is of no use, since {why}; leave it out.")
    size = tuple(options.size or getattr(inference.options, "eval_size", None) or USUAL_SIZE)
    real = options.picture
    rng = np.random.default_rng(0)
    if real is None:
        scene = synthetic.draw(rng, [synthetic.random_shape(rng, size) for _ in range(6)], size)
        real = scene.image
        if inference.media == "video":
            real = np.stack([np.roll(real, 4 * frame, axis=1) for frame in range(64)])
    pixels = model.prepare(real)[inference.media][None]
    if inference.media == "video":
        pixels = pixels[:, :1]  # one view
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, pixels.shape, dtype=torch.uint8, generator=generator)
    make = inference.arranged if bytes_in else inference.scaled
    return {name: make(each).contiguous() for name, each in (("random", noise), ("real", pixels))}


def _traced(form: nn.Module, images: Tensor, task: str) -> tuple[ExportedProgram, list[str]]:
    """The graph with as many sizes left open as the network allows, and which these are."""
    fixed = not isinstance(form, Candidates) and type(form) is not Plain
    wanted: list[dict[int, Any]] = [{}]
    if not fixed:
        wanted.insert(0, {0: Dim.AUTO})
    if task == "segmentation":
        wanted.insert(0, {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO})
    reason = ""
    for sizes in wanted:
        # One of a batch of 1 would be taken for a constant.
        example = images.repeat(2, *(1,) * (images.ndim - 1)) if sizes else images
        with watched(form) as layer, _exportable(images):
            try:
                program = torch.export.export(
                    form, (example,), dynamic_shapes=(sizes,) if sizes else None, strict=False
                )
            except Exception as error:  # of many types: whatever the network's code meets
                cause = str(error).strip().partition("\n")[0]
                reason = f"{layer}: {cause or type(error).__name__}"
                continue
        return program, _open_sizes(program)
    raise UserError(
        f"This network can't be exported, at its layer {reason.removeprefix('network.')}"
    )


def _open_sizes(program: ExportedProgram) -> list[str]:
    name = program.graph_signature.user_inputs[0]
    (node,) = [node for node in program.graph.nodes if node.name == name]
    shape = node.meta["val"].shape
    found = ["batch"] if not isinstance(shape[0], int) else []
    return found + (["height and width"] if not isinstance(shape[-1], int) else [])


@contextlib.contextmanager
def _exportable(images: Tensor) -> Iterator[None]:
    """Inside, torchvision's suppression is of a form that a graph can hold.

    Its own looks at how many boxes there are to choose between two ways of the same result.
    """
    apart = max(images.shape[-2:]) + 1.0

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        return nms(boxes + (idxs.to(boxes) * apart)[:, None], scores, iou_threshold)

    with mock.patch.object(box_ops, "batched_nms", batched_nms), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _write(
    program: ExportedProgram,
    path: Path,
    form: Plain,
    options: ExportOptions,
    stored: dict[str, str],
) -> Any:
    """Write the file, and return what runs it."""
    if options.format == "torch_export":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, path, extra_files=stored)
            return torch.export.load(path).module()
    names = output_names(form)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=options.opset,
                input_names=["images"],
                output_names=names,
                verbose=False,
            )
        except Exception as error:  # of many types
            cause = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
            raise UserError(
                f"This network can't be written as ONNX ({cause[-1].strip()})."
            ) from None
    made.model.metadata_props.update(stored)
    made.save(path)
    session = open_session(path)
    return lambda images: [
        torch.from_numpy(each) for each in session.run(None, {"images": images.numpy()})
    ]
