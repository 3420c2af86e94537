"""torchvision's detectors behind the interface of models/detector_interface.py, and their weights.

torchvision takes a list of images and returns either losses or detections, depending on its mode.
Here the targets decide, so that a validation loss needs no change of mode. The parts keep their
names: weights are interchangeable with torchvision's.

The normalisation layers are torchvision's. Without published weights all models have plain
BatchNorm. With them the backbones of fasterrcnn_resnet50_fpn, fasterrcnn_mobilenet_v3_large*,
retinanet_resnet50_fpn, fcos_resnet50_fpn and maskrcnn_resnet50_fpn have FrozenBatchNorm, the _v2
models and ssdlite plain BatchNorm. The heads of fcos_resnet50_fpn and retinanet_resnet50_fpn_v2
have GroupNorm in any case.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from errors import UserError
from models.detector_interface import Detections, DetectorLosses
from models.pretrained import downloading
from models.pretrained_heads import BACKGROUND, HEADS, replace_heads


class _Adapter:
    """Mixed into a torchvision detector: the interface of models/detector_interface.py.

    torchvision returns means over the batch. They are multiplied by the number of images, and are
    to be divided by the global number. That equals the loss of the global batch where each image's
    part is a mean by itself (RetinaNet). Where the samples or positives of the batch are counted
    together (the others) it does so only on average.
    """

    divides_by = "images"
    first_label = 1  # class 0 is the background

    def forward(
        self, images: Tensor, targets: dict[str, Tensor] | None = None, detect: bool = False
    ) -> DetectorLosses | list[Detections] | tuple[DetectorLosses, list[Detections]]:
        """Losses where targets are given, else detections; with ``detect`` both."""
        if targets is None:
            return [self._to_detections(found) for found in super().forward(list(images))]
        if detect:
            with _one_pass(self.backbone):
                return self(images, targets), self(images)
        with _training_branches(self):
            means = super().forward(list(images), self._unpad(targets))
        parts = {name.removeprefix("loss_"): len(images) * mean for name, mean in means.items()}
        return DetectorLosses(parts)

    def _unpad(self, targets: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        images = []
        for i, labels in enumerate(targets["labels"]):
            real = labels >= 0
            image = {name: values[i][real] for name, values in targets.items()}
            image["labels"] = image["labels"] + self.first_label
            images.append(image)
        return images

    def _to_detections(self, found: dict[str, Tensor]) -> Detections:
        found = {**found, "labels": found["labels"] - self.first_label}
        if "masks" in found:
            found["masks"] = found["masks"][:, 0]
        return found


class FasterRCNNDetector(_Adapter, FasterRCNN):
    """Faster R-CNN (arXiv:1506.01497)."""


class MaskRCNNDetector(_Adapter, MaskRCNN):
    """Mask R-CNN (arXiv:1703.06870)."""


class SSDDetector(_Adapter, SSD):
    """SSD (arXiv:1512.02325)."""


class RetinaNetDetector(_Adapter, RetinaNet):
    """RetinaNet (arXiv:1708.02002)."""

    first_label = 0


class FCOSDetector(_Adapter, FCOS):
    """FCOS (arXiv:1904.01355)."""

    first_label = 0


DETECTORS = {
    FasterRCNN: FasterRCNNDetector,
    MaskRCNN: MaskRCNNDetector,
    SSD: SSDDetector,
    RetinaNet: RetinaNetDetector,
    FCOS: FCOSDetector,
}

# The parts of a detector that behave differently in training; none of them normalises.
_BRANCHING = (*DETECTORS, RegionProposalNetwork, RoIHeads, GeneralizedRCNNTransform)


@contextmanager
def _training_branches(model: nn.Module) -> Iterator[None]:
    """Let a detector compute its losses in either mode.

    Normalisation layers and dropout stay in the model's mode: a validation loss uses the running
    statistics and doesn't change them.
    """
    flipped = [m for m in model.modules() if isinstance(m, _BRANCHING) and not m.training]
    for module in flipped:
        module.training = True
    try:
        yield
    finally:
        for module in flipped:
            module.training = False


@contextmanager
def _one_pass(backbone: nn.Module) -> Iterator[None]:
    """Let a backbone keep the maps of a batch, which both losses and detections start from."""
    forward, kept = backbone.forward, []

    def once(images: Tensor) -> Any:
        if not kept:
            kept.append(forward(images))
        return kept[0]

    backbone.forward = once
    try:
        yield
    finally:
        del backbone.forward


class KeepSize(GeneralizedRCNNTransform):
    """torchvision's transform without its resizing: images come in at the size they train at."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Image and target as they are."""
        return image, target


def prepare(model: nn.Module) -> nn.Module:
    """Make a torchvision detector fit for training at one size and in mixed precision.

    Images keep their size, except in ssdlite, which works at one size only and resizes on the
    device. Under autocast the features that boxes are computed from become float32. torchvision
    would compute anchors and boxes in the type of the features, and bfloat16 rounds a coordinate
    beyond 512 pixels to a multiple of 4.
    """
    if not isinstance(model, SSD):
        old = model.transform
        model.transform = KeepSize(old.min_size, old.max_size, old.image_mean, old.image_std)
    for name, part in model.named_modules():
        if name in ("backbone", "rpn.head", "head", *HEADS[:2]):
            part.register_forward_hook(_to_full_precision)
    return model


def _to_full_precision(module: nn.Module, args: tuple, result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.to(torch.promote_types(result.dtype, torch.float32))
    if isinstance(result, Mapping):
        return OrderedDict((k, _to_full_precision(module, args, v)) for k, v in result.items())
    return type(result)(_to_full_precision(module, args, v) for v in result)


def build_torchvision_detector(
    name: str,
    num_classes: int,
    *,
    weights: str = "none",
    trainable_layers: int | None = None,
    class_names: Sequence[str] | None = None,
) -> nn.Module:
    """The detector of torchvision called ``name``, from scratch or with published weights.

    Args:
        name: a name in torchvision's list of models.
        num_classes: without a background.
        weights: none, default (trained on COCO) or backbone (trained on ImageNet).
        trainable_layers: how many of the backbone's stages train, counted from the last: 0 to 5 of
            a ResNet, 0 to 6 of MobileNetV3. None for torchvision's choice: 3, or all of ssdlite.
        class_names: name of each class. Heads trained on COCO keep what they learnt about the
            classes of these names. Without names they are kept where the number of classes is
            theirs.

    Raises:
        UserError: trainable_layers is out of range or has no effect, or a download failed.
    """
    most = 6 if "mobilenet" in name else 5
    if trainable_layers is not None:
        if weights == "none":
            raise UserError(
                f"trainable_layers={trainable_layers} freezes layers of published weights: choose "
                'weights="default" or "backbone" with it, or leave it out.'
            )
        if not 0 <= trainable_layers <= most:
            raise UserError(
                f"trainable_layers={trainable_layers} is out of range: {name} has {most} stages, "
                f"so choose from 0 (all frozen) to {most} (all trained)."
            )
    one_label_more = name.startswith(("fasterrcnn", "maskrcnn", "ssdlite"))
    options = {"num_classes": num_classes + one_label_more}
    if name.startswith("fasterrcnn_mobilenet"):
        # torchvision drops proposals that score below 0.05 here. Once a network has learnt a data
        # set with empty images this can leave a batch without any proposal, and the mean loss over
        # none is NaN. The limits on their number bound the cost.
        options["rpn_score_thresh"] = 0.0
    if weights == "none":
        model = _build(name, weights=None, weights_backbone=None, **options)
    elif weights == "backbone":
        with downloading(f"the weights of {name}'s backbone"):
            model = _build(
                name,
                weights=None,
                weights_backbone="DEFAULT",
                trainable_backbone_layers=trainable_layers,
                **options,
            )
    else:
        published = torchvision.models.get_model_weights(name).DEFAULT
        known = options.pop("num_classes")
        with downloading(f"the weights of {name}"):
            model = _build(
                name, weights=published, trainable_backbone_layers=trainable_layers, **options
            )
        theirs = published.meta["categories"]
        ours = [BACKGROUND] * one_label_more + list(class_names or [None] * num_classes)
        if (ours != theirs) if class_names else (known != len(theirs)):
            fresh = _build(name, weights=None, weights_backbone=None, num_classes=known)
            replace_heads(model, fresh, theirs, ours, f"{name}'s {published.name}")

    model.__class__ = DETECTORS[type(model)]
    return prepare(model)


def set_limits(model: nn.Module, score_threshold: float, max_detections: int) -> None:
    """Set which detections a detector keeps: from which score, and how many per image."""
    part = model.roi_heads if hasattr(model, "roi_heads") else model
    part.score_thresh, part.detections_per_img = score_threshold, max_detections


def _build(name: str, **options) -> nn.Module:
    return torchvision.models.get_model(name, progress=False, **options)
