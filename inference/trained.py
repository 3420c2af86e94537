"""``load_trained``: from a file of weights to a model that answers with typed results.

model = load_trained("runs/mine")
found = model.predict("street.jpg")
found.boxes, found.scores, found.names
"""

import contextlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from data.decode import read_image
from data.pixels import PixelScaling
from data.tiles import Tiles
from engine.about import About, read_about
from engine.inference import EXCHANGED, Inference, set_eps
from engine.prepare import use_channels_last
from errors import UserError
from inference.averaging import averaged
from inference.onnx_network import read_onnx
from inference.tasks import TASKS, inference_class, with_options
from models.find_weights import find_weights
from models.weights import read_weights
from norm import convert_norm

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ONNX = ".onnx"


class Trained:
    """A trained network with all that is done before and after it.

    Args:
        inference: of its task.
        network: in evaluation mode, on the device.
        about: what its file says.
        precision: no, bf16 or fp16: of the network's arithmetic.

    Attributes:
        classes: name of each class.
    """

    def __init__(
        self, inference: Inference, network: nn.Module, about: About, precision: str = "no"
    ) -> None:
        self.inference, self.network, self.about = inference, network, about
        self.precision = precision
        self.classes = inference.classes

    def use_tiles(self, side: int, overlap: float = 0.25) -> None:
        """Look at pictures in tiles from now on.

        Args:
            side: pixels of a tile; 0 for whole pictures.
            overlap: share of a tile that the next one shows too, up to one half.

        Raises:
            UserError: the task or the model can't.
        """
        task = self.about.task
        if side and task not in ("segmentation", "detection"):
            raise UserError(f"Tiles are for segmentation and detection, and not for {task}.")
        if side and getattr(self.inference.options, "has_masks", False):
            raise UserError("Objects with masks are not joined across tiles: leave out --tile.")
        self.inference.tiles = Tiles(side, overlap) if side else None

    def use_tta(self, names: Sequence[str]) -> None:
        """Look at changed copies of every input too; see ``inference.averaging.averaged``."""
        self.network = averaged(self.network, self.about, names)

    def predict(self, media: Any, batch_size: int = 8) -> Any:
        """What the network makes of one input or of several.

        Args:
            media: a picture: a path, a Pillow image, a uint8 array (H, W, 3) or a uint8 tensor
                (3, H, W) of RGB; for a video classifier a video: a path, or a uint8 tensor
                (T, 3, H, W). Or a list of these.
            batch_size: inputs of one shape that are computed at a time.

        Returns:
            The task's result, such as ``tasks.detection.inference.DetectionResult``; of a list, a
            list in its order.

        Raises:
            UserError: an input can't be read, or is of another kind.
        """
        several = isinstance(media, list | tuple)
        samples = [self.prepare(each) for each in (media if several else [media])]
        results = self.predict_samples(samples, batch_size)
        return results if several else results[0]

    def prepare(self, media: Any) -> dict[str, Any]:
        """What the network sees of an input; see ``engine.inference.Inference.prepare``."""
        if self.inference.media == "image":
            return self.inference.prepare(as_picture(media))
        from inference.clips import as_video

        with as_video(media) as video:
            return self.inference.prepare(video)

    def shape_of(self, sample: dict[str, Any]) -> Hashable:
        """Prepared samples of equal shapes may share a batch."""
        return self.inference.shape_of(sample)

    def predict_samples(self, samples: Sequence[dict[str, Any]], batch_size: int) -> list[Any]:
        """Results of prepared samples, in their order; those of one shape share batches."""
        results: list[Any] = [None] * len(samples)
        groups: dict[Hashable, list[int]] = {}
        for number, sample in enumerate(samples):
            groups.setdefault(self.shape_of(sample), []).append(number)
        for numbers in groups.values():
            for first in range(0, len(numbers), batch_size):
                part = numbers[first : first + batch_size]
                batch = [samples[number] for number in part]
                pixels = torch.stack([sample[self.inference.media] for sample in batch])
                found = self.of_batch(pixels, batch)
                for number, result in zip(part, found, strict=True):
                    results[number] = result
        return results

    def of_batch(self, pixels: Tensor, samples: list[dict[str, Any]]) -> list[Any]:
        """Results of samples of one shape, computed together.

        Args:
            pixels: theirs, stacked: uint8 (B, ...) on the CPU.
            samples: from ``prepare``; their own pixels may be missing.
        """
        with self.computing():
            return self.inference.results(self.network, pixels, samples)

    @contextlib.contextmanager
    def computing(self) -> Any:
        """Inside, nothing is recorded for gradients, and the precision is the one asked for."""
        dtype = PRECISIONS[self.precision]
        device = self.inference.device.type
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype is not None):
            yield


def load_trained(
    weights: str | Path,
    device: str | torch.device = "cpu",
    precision: str = "no",
    given: About | None = None,
) -> Trained:
    """A trained model, ready to predict.

    Args:
        weights: a run's folder, a .safetensors or .onnx file of this project, or
            ``hub:owner/name``.
        device: where it computes.
        precision: no (float32), bf16 or fp16.
        given: what a file that says nothing about itself is said to be.

    Raises:
        UserError: there is no such file, it doesn't say what it is, or it isn't what it says.
    """
    path = find_weights(weights)
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision}: give one of {', '.join(PRECISIONS)}.")
    device = torch.device(device)
    if path.suffix == ONNX:
        about, network = read_onnx(path)
        return Trained(inference_of(about, device), network, about, precision)
    about = read_about(path) or given
    if about is None:
        raise UserError(
            f"{path} doesn't say what it is, as files of this project's runs do: give --task, "
            "--model, --class_names and, where they differ from the script's, --model_options "
            "such as image_size=640,640."
        )
    inference = inference_of(about, device)
    return Trained(inference, build_trained(inference, about, path), about, precision)


def says_what_it_is(path: Path) -> bool:
    """Whether a file of weights describes itself; one of ONNX can't be used otherwise."""
    return path.suffix == ONNX or read_about(path) is not None


def inference_of(about: About, device: torch.device) -> Inference:
    """The inference that a file's description asks for.

    Raises:
        UserError: its task is unknown.
    """
    if about.task not in TASKS:
        raise UserError(f"There is no task {about.task}: known are {', '.join(TASKS)}.")
    options = with_options(about.task, about.options)
    scaling = about.scaling and PixelScaling(
        tuple(about.scaling["mean"]), tuple(about.scaling["std"])
    )
    return inference_class(about.task)(
        options, about.classes, about.colors, device, scaling or None
    )


def build_trained(inference: Inference, about: About, path: Path) -> nn.Module:
    """The network with a file's weights, in evaluation mode and on the device.

    Raises:
        UserError: the file's tensors are not those of the network.
    """
    model = inference.build_model()
    if about.norm in EXCHANGED:
        model, _ = convert_norm(model, about.norm)
    if about.norm_eps is not None:
        set_eps(model, about.norm_eps)
    state = read_weights(path)
    missing, unknown = model.load_state_dict(fitting(model, state), strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    unknown = unknown or [key for key in state if key not in model.state_dict()]
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which isn't in the network"
        raise UserError(
            f"{path} doesn't hold the weights of {about.options.get('model')} for "
            f"{len(about.classes)} classes: it {what}; check the model, its options and classes."
        )
    model.requires_grad_(False).to(inference.device)
    if inference.options.channels_last:
        use_channels_last(model)
    return model.eval()


def fitting(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that have the name and the shape of one of the model's."""
    own = model.state_dict()
    return {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}


def as_picture(media: Any) -> Tensor:
    """A picture in any usual form as uint8 RGB (3, H, W).

    Raises:
        UserError: it can't be decoded, or is none.
    """
    if isinstance(media, str | Path):
        return read_image({"path": str(media), "bytes": None}, str(media))
    if isinstance(media, Image.Image):
        return F.pil_to_tensor(media.convert("RGB"))
    if isinstance(media, np.ndarray):
        media = torch.from_numpy(np.array(media)).movedim(-1, 0)
    is_bytes = isinstance(media, Tensor) and media.dtype == torch.uint8
    if is_bytes and media.ndim == 3 and media.shape[0] == 3 and media.numel():
        return media
    shape = getattr(media, "shape", None)
    raise UserError(
        f"A {type(media).__name__}{f' of shape {tuple(shape)}' if shape is not None else ''} is no "
        "picture: give a path, a Pillow image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W)."
    )
