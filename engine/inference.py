"""From a picture or a clip to a typed result: what evaluation, figures and prediction share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.masks import Color
from data.pixels import PixelScaling
from data.tiles import Tiles
from engine.about import About, data_of, versions

USUAL_EPS = 1e-5
EXCHANGED = ("group_norm", "frozen_bn")  # what training may have put in BatchNorm's place


class Inference(ABC):
    """A task without its data: its network, and what is done before and after it.

    Args:
        options: the training script's options, or others of the same names.
        classes: name of each class.
        colors: RGB of each class.
        device: where batches are computed.
        scaling: of the pixels; None for what the model was made for.

    Attributes:
        task: its name.
        saved: the options that the network and its evaluation depend on.
        media: what one input is, "image" or "video".
        tiles: what pictures are cut into, or None to look at them whole.
        at_once: tiles in a batch.
    """

    task: ClassVar[str]
    saved: ClassVar[tuple[str, ...]]
    media: ClassVar[str] = "image"

    def __init__(
        self,
        options: Any,
        classes: Sequence[str],
        colors: Sequence[Color],
        device: torch.device,
        scaling: PixelScaling | None = None,
    ) -> None:
        self.options, self.device = options, device
        self.classes, self.colors = list(classes), [tuple(color) for color in colors]
        self.dtype = compute_dtype(options.double)
        self.scaling = scaling or self.usual_scaling()
        side = getattr(options, "eval_tile", 0)
        self.tiles = Tiles(side, options.eval_overlap) if side else None
        self.at_once = 8

    @abstractmethod
    def usual_scaling(self) -> PixelScaling:
        """The scaling of pixels that the model was made for."""

    @abstractmethod
    def build_model(self, weights: str = "none") -> nn.Module:
        """The network that the options name, in float32 on the CPU, with BatchNorm as built."""

    @abstractmethod
    def prepare(self, media: Any) -> dict[str, Any]:
        """What the network sees of an input; in a loader's worker.

        Args:
            media: a picture uint8 (3, H, W), or an open video.

        Returns:
            {self.media: uint8 tensor}, and what ``results`` needs to find its way back.
        """

    @property
    def tiles_as_stored(self) -> bool:
        """Whether tiles are cut out of pictures that nothing has resized."""
        return self.tiles is not None

    def shape_of(self, sample: dict[str, Any]) -> Hashable:
        """Samples of equal shapes may share a batch."""
        return tuple(sample[self.media].shape)

    def arranged(self, pixels: Tensor) -> Tensor:
        """Bytes in the order of dimensions in which the network takes them."""
        return pixels

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        dims = 3 if self.media == "video" else 2
        return self.scaling.of_bytes(self.dtype, self.device, dims)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Bytes on the device, as the float tensor that the network takes."""
        mean, std = self._constants
        values = self.arranged(pixels).to(self.dtype, copy=True)
        return self.laid_out(values.sub_(mean).div_(std))  # in place: clips are large

    def laid_out(self, inputs: Tensor) -> Tensor:
        """In the memory format that ``--channels_last`` asks for."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        wanted = formats[inputs.dim()] if self.options.channels_last else torch.contiguous_format
        return inputs.contiguous(memory_format=wanted)

    def of_bytes(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """A batch of bytes on the CPU as what a network takes, on the device."""
        pixels = pixels.to(self.device, non_blocking=True)
        # An exported network may scale its pixels itself.
        return self.arranged(pixels) if getattr(model, "bytes_in", False) else self.scaled(pixels)

    @abstractmethod
    def results(self, model: nn.Module, pixels: Tensor, samples: list[dict[str, Any]]) -> list[Any]:
        """A typed result for every sample of a batch.

        Args:
            model: in evaluation mode.
            pixels: of the samples, stacked: uint8 on the CPU.
            samples: from ``prepare``; their own pixels may be missing.
        """

    def about(
        self, model: nn.Module, norm: str, step: int = 0, metrics: dict[str, float] | None = None
    ) -> About:
        """What the weights of ``model`` have to say about themselves.

        Args:
            model: the network.
            norm: which normalisation was chosen; see ``norm.choose_norm``.
            step: optimizer steps done.
            metrics: of the evaluation.
        """
        measured = {k: v for k, v in (metrics or {}).items() if k != "step" and math.isfinite(v)}
        given = {name: getattr(self.options, name) for name in self.saved}
        return About(
            task=self.task,
            options=given,
            classes=self.classes,
            colors=self.colors,
            scaling={"mean": list(self.scaling.mean), "std": list(self.scaling.std)},
            norm=norm if norm in EXCHANGED else "bn",
            norm_eps=unusual_eps(model),
            step=step,
            metrics=measured,
            versions=versions(),
            data=data_of(self.options),
        )


def compute_dtype(double: bool) -> torch.dtype:
    """The type that ``--double`` asks for."""
    return torch.float64 if double else torch.float32


def unusual_eps(model: nn.Module) -> dict[str, list[str]]:
    """The normalisation layers whose epsilon isn't 1e-5, by the epsilon.

    Which one a layer has depends on where a network comes from: torchvision's frozen layers have
    another when they were published than when they are built anew.
    """
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "running_var") and getattr(module, "eps", USUAL_EPS) != USUAL_EPS:
            found.setdefault(repr(module.eps), []).append(name)
    return found


def set_eps(model: nn.Module, unusual: dict[str, list[str]]) -> None:
    """Give the normalisation layers the epsilons that ``unusual_eps`` found."""
    wanted = {name: float(eps) for eps, names in unusual.items() for name in names}
    for name, module in model.named_modules():
        if hasattr(module, "running_var") and hasattr(module, "eps"):
            module.eps = wanted.get(name, USUAL_EPS)
