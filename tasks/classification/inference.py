"""From a picture to its class: what evaluation, figures and prediction share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from data.pixels import PixelScaling
from engine.inference import Inference
from models.classification import build_classification_model
from models.pretrained import pixel_scaling
from tasks.classification.transforms import eval_transform


@dataclass(frozen=True)
class ClassificationResult:
    """The probability of every class.

    Attributes:
        probabilities: (K,), of sum 1.
        classes: name of each class.
    """

    probabilities: Tensor
    classes: list[str]

    @property
    def label(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """Its name."""
        return self.classes[self.label]

    @property
    def score(self) -> float:
        """Its probability."""
        return float(self.probabilities.max())

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, best first."""
        best, labels = self.probabilities.topk(min(count, len(self.classes)))
        names = [self.classes[label] for label in labels.tolist()]
        return list(zip(names, best.tolist(), strict=True))


class ClassificationInference(Inference):
    """Classification without its data."""

    task = "classification"
    saved = ("model", "image_size", "crop_ratio", "hflip")

    def usual_scaling(self) -> PixelScaling:
        """That with which the model was trained where it was published."""
        return pixel_scaling(self.options.model)

    def build_model(self, weights: str = "none") -> nn.Module:
        """The network; every one maps images to logits (B, K)."""
        return build_classification_model(
            self.options.model,
            len(self.classes),
            weights=weights,
            image_size=tuple(self.options.image_size),
        )

    @cached_property
    def transform(self) -> Any:
        """The transform of a tv_tensors.Image before the network sees it."""
        return eval_transform(tuple(self.options.image_size), self.options.crop_ratio)

    def prepare(self, media: Tensor) -> dict[str, Any]:
        """{"image": uint8 (3, h, w)}, the middle of the picture."""
        return {"image": self.transform(tv_tensors.Image(media)).as_subclass(torch.Tensor)}

    def probabilities(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """(B, K) of images that ``scaled`` has made."""
        return model(inputs).to(self.dtype).softmax(1)

    def results(
        self, model: nn.Module, pixels: Tensor, samples: list[dict[str, Any]]
    ) -> list[ClassificationResult]:
        """The class of every picture of a batch."""
        rows = self.probabilities(model, self.of_bytes(model, pixels)).cpu()
        return [ClassificationResult(row, self.classes) for row in rows]
