"""From a picture to its objects: what evaluation, figures and prediction share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from data.pixels import PixelScaling
from data.tiles import Tiles
from engine.inference import Inference
from models.detection import build_detection_model
from models.detector_interface import Detections, on_cpu
from tasks.detection import instance_masks
from tasks.detection.dataset import no_objects
from tasks.detection.geometry import to_original
from tasks.detection.loss import yolo_losses
from tasks.detection.tiles import merged
from tasks.detection.transforms import EvalTransform


@dataclass(frozen=True)
class DetectionResult:
    """The objects of a picture, best first: N of them.

    Attributes:
        size: (height, width) of the picture.
        boxes: float64 (N, 4) x0 y0 x1 y1 in pixels of the picture.
        scores: (N,) from 0 to 1.
        labels: int64 (N,) class ids.
        classes: name of each class id.
        rles: with masks, N compressed run lengths of COCO's.
    """

    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: list[str]
    rles: list[dict[str, Any]] | None = None

    @property
    def names(self) -> list[str]:
        """The name of every object's class."""
        return [self.classes[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> Tensor | None:
        """uint8 (N, H, W) of zeros and ones, or None for a detector of boxes alone."""
        return None if self.rles is None else instance_masks.decode(self.rles, self.size)

    @property
    def xywh(self) -> Tensor:
        """The boxes as x, y, width, height."""
        return torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)

    def best(self, score: float) -> "DetectionResult":
        """Those of at least this score."""
        kept = self.scores >= score
        rles = self.rles and [
            rle for rle, keep in zip(self.rles, kept.tolist(), strict=True) if keep
        ]
        parts = (values[kept] for values in (self.boxes, self.scores, self.labels))
        return DetectionResult(self.size, *parts, self.classes, rles)

    def to_draw(self) -> dict[str, Tensor]:
        """What ``tasks.detection.figures.draw_objects`` takes."""
        objects = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return objects if self.rles is None else objects | {"masks": self.masks}


class DetectionInference(Inference):
    """Detection without its data."""

    task = "detection"
    saved = (
        "model",
        "backbone",
        "image_size",
        "max_detections",
        "eval_tile",
        "eval_overlap",
        "hflip",
        "scale_range",
    )

    def usual_scaling(self) -> PixelScaling:
        """None outside the network: detectors scale pixels from 0 to 1 themselves."""
        return PixelScaling((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def build_model(self, weights: str = "none") -> nn.Module:
        """The network; models/detector_interface.py says what goes in and comes out."""
        options = self.options
        return build_detection_model(
            options.model,
            len(self.classes),
            backbone=options.backbone,
            weights=weights,
            trainable_layers=options.trainable_layers,
            image_size=tuple(options.image_size),
            class_names=self.classes,
            yolo_loss=yolo_losses,
            max_detections=options.max_detections,
        )

    @cached_property
    def letterbox(self) -> EvalTransform:
        """The transform of a sample before the network sees it."""
        return EvalTransform(tuple(self.options.image_size))

    def prepare(self, media: Tensor) -> dict[str, Any]:
        """The letterboxed picture, and what ``geometry.to_original`` needs; in tiles, the whole."""
        return {"image": media} if self.tiles else self._letterboxed(media)

    def _letterboxed(self, media: Tensor) -> dict[str, Any]:
        sample = self.letterbox(no_objects(media))
        image = sample["image"].as_subclass(torch.Tensor)
        return {"image": image, **{name: sample[name] for name in ("size", "scale", "offset")}}

    def scaled(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) → float from 0 to 1."""
        return self.laid_out(pixels.to(self.dtype) / 255)

    def results(
        self, model: nn.Module, pixels: Tensor, samples: list[dict[str, Any]]
    ) -> list[DetectionResult]:
        """The objects of every picture of a batch."""
        if self.tiles:
            return [self.in_tiles(model, picture, self.tiles) for picture in pixels]
        return self.in_original(model(self.of_bytes(model, pixels)), samples)

    def in_tiles(self, model: nn.Module, picture: Tensor, tiles: Tiles) -> DetectionResult:
        """The objects of a picture uint8 (3, H, W), found in letterboxed tiles of it."""
        size, parts = tuple(picture.shape[-2:]), []
        windows = tiles.windows(*size)
        for first in range(0, len(windows), self.at_once):
            part = windows[first : first + self.at_once]
            samples = [self._letterboxed(window.of(picture)) for window in part]
            pixels = torch.stack([sample["image"] for sample in samples])
            found = self.in_original(model(self.of_bytes(model, pixels)), samples)
            for window, each in zip(part, found, strict=True):
                shift = torch.tensor([window.left, window.top] * 2)
                parts.append((window, each.boxes + shift, each.scores, each.labels))
        return DetectionResult(size, *merged(parts, size), self.classes)

    def in_original(
        self, found: list[Detections], samples: list[dict[str, Any]]
    ) -> list[DetectionResult]:
        """Detections in letterboxed images, in pixels of the original ones (a device sync)."""
        results = []
        for each, meta in zip(on_cpu(found), samples, strict=True):
            boxes, rles = to_original(each["boxes"], meta), None
            if "masks" in each:
                pairs = zip(each["masks"].cpu(), boxes, strict=True)
                rles = [instance_masks.encode_original(mask, box, meta) for mask, box in pairs]
            size = tuple(meta["size"].tolist())
            results.append(
                DetectionResult(size, boxes, each["scores"], each["labels"], self.classes, rles)
            )
        return results
