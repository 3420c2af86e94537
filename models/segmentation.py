"""The segmentation models by name: ``build_segmentation_model("unet", num_classes=5)``.

Every model maps images (B, 3, H, W), whose pixels are scaled with ImageNet's constants, to
{"out": logits (B, num_classes, H, W)}. One with an auxiliary head adds "aux", of the same shape,
while training.
"""

from functools import partial

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError, unknown_name
from models.backbones import build_backbone
from models.deeplabv3plus import DeepLabV3Plus
from models.dry_run import freeze_unused
from models.pretrained import downloading, load_published
from models.unet import UNet
from models.weights import NAMED_WEIGHTS, load_weights

DEFAULT_BACKBONE = "syncbnnet"


def build_segmentation_model(
    name: str,
    num_classes: int,
    *,
    backbone: str = DEFAULT_BACKBONE,
    weights: str = "none",
    aux_loss: bool = False,
) -> nn.Module:
    """The segmentation model called ``name``.

    Args:
        name: one of ``SEGMENTATION_MODELS``.
        num_classes: number of logits per pixel.
        backbone: of the project's own models; see ``models.backbones.build_backbone``.
        weights: one of

            "none"      random, by torch's global generator
            "default"   all that is published: torchvision's segmenter, or the backbone of the
                        project's own; a head for other classes stays random
            "backbone"  the backbone trained on ImageNet, the rest random
            a path      a .safetensors or .pth file; what does not fit is logged

        aux_loss: whether the model has an auxiliary head.

    Raises:
        UserError: the name is unknown, the model doesn't exist with these arguments, or the weights
            do not exist or can't be fetched.
    """
    if name not in SEGMENTATION_MODELS:
        raise unknown_name("segmentation model", name, SEGMENTATION_MODELS)
    published = weights if weights in NAMED_WEIGHTS else "none"
    model = SEGMENTATION_MODELS[name](
        name, num_classes, backbone=backbone, weights=published, aux_loss=aux_loss
    )
    load_weights(model, weights)
    return model


def _build_own(
    network: type[nn.Module],
    name: str,
    num_classes: int,
    *,
    backbone: str,
    weights: str,
    aux_loss: bool,
) -> nn.Module:
    # DeepLab's dilated convolutions were designed for a coarsest map at a sixteenth.
    output_stride = 16 if network is DeepLabV3Plus else None
    features = build_backbone(backbone, weights, output_stride=output_stride)
    model = network(features, num_classes, aux_loss=aux_loss)
    if backbone.startswith("timm/"):
        freeze_unused(model)
    return model


def _build_torchvision(
    name: str, num_classes: int, *, backbone: str, weights: str, aux_loss: bool
) -> nn.Module:
    if backbone != DEFAULT_BACKBONE:
        raise UserError(
            f"{name} has its backbone built in: leave out the backbone {backbone}, or choose a "
            "model that takes one, unet or deeplabv3plus."
        )
    options = {"aux_loss": aux_loss}
    if name.startswith("lraspp"):
        if aux_loss:
            raise UserError(f"{name} has no auxiliary head: train it without the auxiliary loss.")
        options = {}
    with downloading(f"the weights of {name}"):
        model = torchvision.models.get_model(
            name,
            num_classes=num_classes,
            weights=None,
            weights_backbone="DEFAULT" if weights == "backbone" else None,
            **options,
        )
    if weights == "default":
        load_published(model, name, without=() if aux_loss else ("aux_classifier.",))
    return TorchvisionSegmenter(model) if aux_loss else model


SEGMENTATION_MODELS = {
    "unet": partial(_build_own, UNet),
    "deeplabv3plus": partial(_build_own, DeepLabV3Plus),
    "fcn_resnet50": _build_torchvision,
    "fcn_resnet101": _build_torchvision,
    "deeplabv3_resnet50": _build_torchvision,
    "deeplabv3_resnet101": _build_torchvision,
    "deeplabv3_mobilenet_v3_large": _build_torchvision,
    "lraspp_mobilenet_v3_large": _build_torchvision,
}


class TorchvisionSegmenter(nn.Module):
    """A torchvision FCN or DeepLabV3 that runs its auxiliary head while training only.

    torchvision's own forward always runs it, which evaluation would pay for and not use. The parts
    keep their names, so the weights are interchangeable with torchvision's.

    Args:
        model: built by torchvision, with an auxiliary head.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.aux_classifier = model.aux_classifier

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → {"out": (B, num_classes, H, W)}, in training also "aux" of this shape."""
        features = self.backbone(x)
        result = {"out": self.classifier(features["out"])}
        if self.training:
            result["aux"] = self.aux_classifier(features["aux"])
        size = x.shape[-2:]
        return {
            key: F.interpolate(logits, size, mode="bilinear", align_corners=False)
            for key, logits in result.items()
        }
