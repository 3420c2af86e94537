"""From a picture to a class for every pixel: what evaluation, figures and prediction share."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from data.pixels import IMAGENET, PixelScaling
from data.tiles import Window
from engine.inference import Inference
from models.segmentation import build_segmentation_model
from tasks.segmentation.metrics import most_probable
from tasks.segmentation.tiles import blended, enlarged
from tasks.segmentation.transforms import eval_transform


@dataclass(frozen=True)
class SegmentationResult:
    """A class for every pixel of a picture.

    Attributes:
        mask: uint8 (H, W) class ids, at the picture's own resolution.
        classes: name of each class id.
    """

    mask: Tensor
    classes: list[str]

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of the picture that each class covers, the largest first."""
        pixels = self.mask.flatten().bincount(minlength=len(self.classes)).tolist()
        counted = sorted(zip(pixels, self.classes, strict=True), key=lambda pair: -pair[0])
        return {name: count / sum(pixels) for count, name in counted if count}

    @property
    def names(self) -> list[str]:
        """The classes that occur, the largest first."""
        return list(self.shares)


class SegmentationInference(Inference):
    """Segmentation without its data."""

    task = "segmentation"
    saved = (
        "model",
        "backbone",
        "aux_loss",
        "eval_size",
        "eval_tile",
        "eval_overlap",
        "hflip",
        "scale_range",
    )

    def usual_scaling(self) -> PixelScaling:
        """ImageNet's, for every model."""
        return IMAGENET

    def build_model(self, weights: str = "none") -> nn.Module:
        """The network, which maps images (B, 3, H, W) to {"out": logits (B, K, H, W)}.

        With an auxiliary head, it also returns {"aux": logits (B, K, H, W)} in training.
        """
        return build_segmentation_model(
            self.options.model,
            len(self.classes),
            backbone=self.options.backbone,
            weights=weights,
            aux_loss=self.options.aux_loss > 0,
        )

    @cached_property
    def resize(self) -> Any:
        """The transform of a picture (3, H, W) before the network sees it."""
        return eval_transform(self.options.eval_size)

    def prepare(self, media: Tensor) -> dict[str, Any]:
        """{"image": uint8 (3, h, w), "size": (H, W) of the picture}."""
        return {"image": self.resize(media), "size": tuple(media.shape[-2:])}

    @property
    def tiles_as_stored(self) -> bool:
        """Whether tiles are cut out of pictures that nothing has resized."""
        return self.tiles is not None and not self.options.eval_size

    def shape_of(self, sample: dict[str, Any]) -> Hashable:
        """The size of the resized picture and of the result."""
        return tuple(sample["image"].shape), sample["size"]

    def results(
        self, model: nn.Module, pixels: Tensor, samples: list[dict[str, Any]]
    ) -> list[SegmentationResult]:
        """A mask for every picture of a batch."""
        size = samples[0]["size"]
        masks = torch.empty(len(samples), *size, dtype=torch.uint8)
        for number, window, logits in self.parts(model, pixels, size):
            window.of(masks[number]).copy_(most_probable(logits).to(torch.uint8))
        return [SegmentationResult(mask, self.classes) for mask in masks]

    def parts(
        self, model: nn.Module, pixels: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[slice, Window, Tensor]]:
        """Logits of parts of pictures, which cover them: enlarged ones in bands, others whole.

        Args:
            model: in evaluation mode.
            pixels: uint8 (B, 3, h, w) on the CPU, resized as evaluation does.
            size: (H, W) of the result.

        Yields:
            Which pictures, a part of them, and its logits (B', K, h', w') until the next part.
        """
        if not self.tiles:
            logits = model(self.of_bytes(model, pixels))["out"].to(self.dtype)
            for window, part in enlarged(logits, size):
                yield slice(None), window, part
            return
        for number, picture in enumerate(pixels):
            for window, part in self._in_tiles(model, picture, size):
                yield slice(number, number + 1), window, part

    def _in_tiles(
        self, model: nn.Module, picture: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[Window, Tensor]]:
        def logits_of(windows: Tensor) -> Tensor:
            logits = model(self.of_bytes(model, windows))["out"].to(self.dtype)
            return torch.cat([part for _, part in enlarged(logits, windows.shape[-2:])], -2)

        shape = tuple(picture.shape[-2:])
        parts = blended(logits_of, picture, self.tiles, len(self.classes), self.at_once)
        if shape == tuple(size):
            yield from ((window, logits[None]) for window, logits in parts)
            return
        whole = torch.empty(1, len(self.classes), *shape, dtype=self.dtype, device=self.device)
        for window, logits in parts:
            window.of(whole).copy_(logits)
        yield from enlarged(whole, size)
