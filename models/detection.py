"""The detection models by name: ``build_detection_model("yolo_nano", num_classes=6)``.

models/detector_interface.py says what goes into each of them and what comes out.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from errors import UserError, unknown_name
from models.backbones import build_backbone
from models.detector_interface import DetectorLosses
from models.dry_run import freeze_unused
from models.pyramid_detectors import build_faster_rcnn, build_fcos, build_retinanet
from models.syncbnnet import SyncBNBackbone
from models.torchvision_detectors import build_torchvision_detector, set_limits
from models.weights import NAMED_WEIGHTS, load_weights
from models.yolo import YOLO_SIZES, Yolo

TORCHVISION_DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
DETECTION_MODELS = (*YOLO_SIZES, "fasterrcnn", "retinanet", "fcos", *TORCHVISION_DETECTORS)
DEFAULT_BACKBONE = "syncbnnet"
SMALLEST_SIDE = 32  # the coarsest map that every model has is a 32nd of the image


def build_detection_model(
    name: str,
    num_classes: int,
    *,
    backbone: str | None = None,
    weights: str = "none",
    trainable_layers: int | None = None,
    image_size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    yolo_loss: Callable[..., DetectorLosses] | None = None,
    score_threshold: float = 0.001,
    max_detections: int = 100,
) -> nn.Module:
    """The detection model called ``name``; DETECTION_MODELS lists them.

    Args:
        name: of the model.
        num_classes: without a background.
        backbone: of fasterrcnn, retinanet and fcos, and instead of a yolo's own; see
            models/backbones.py.
        weights:
            none      random, from torch's global generator
            default   all that is published: torchvision's detector, or the backbone of a model of
                      this project; the heads' outputs for classes they don't know stay random
            backbone  the backbone trained on ImageNet, the rest random
            a path    a .safetensors or .pth file; tensors that don't fit are logged
        trainable_layers: how many stages of a published torchvision detector's backbone train;
            None leaves it to torchvision.
        image_size: (height, width) of the images to come. retinanet and fcos have coarser maps for
            larger ones; without it as many as published, which are for some 800 pixels.
        class_names: name of each class, by which published heads find those that they know.
        yolo_loss: computes the losses of a yolo; see models/yolo.py. Without it a yolo only
            detects. The other models have losses of their own.
        score_threshold: detections that score less are left out. Average precision takes weak ones
            into account, so 0.001 is for measuring; 0.3 or so is for looking at images.
        max_detections: per image at most.

    Raises:
        UserError: an unknown name, a combination that does not exist, or images too small.
    """
    if name not in DETECTION_MODELS:
        raise unknown_name("detection model", name, DETECTION_MODELS)
    if image_size is not None and min(image_size) < SMALLEST_SIDE:
        raise UserError(
            f"Images of {image_size[0]}x{image_size[1]} are too small for {name}, whose coarsest "
            f"map is a {SMALLEST_SIDE}nd of the image: make both sides at least {SMALLEST_SIDE}."
        )
    published = weights if weights in NAMED_WEIGHTS else "none"
    if name in TORCHVISION_DETECTORS:
        if backbone is not None:
            raise UserError(
                f"{name} has its backbone built in: leave out the backbone {backbone}, or choose a "
                "model that takes one, such as fasterrcnn or yolo_s."
            )
        model = build_torchvision_detector(
            name,
            num_classes,
            weights=published,
            trainable_layers=trainable_layers,
            class_names=class_names,
        )
    elif trainable_layers is not None:
        raise UserError(
            f"trainable_layers is for torchvision's published detectors, and {name} trains all of "
            "its layers: leave it out."
        )
    elif name in YOLO_SIZES:
        model = _build_yolo(name, num_classes, backbone, published, yolo_loss)
    else:
        model = _build_over_pyramid(name, num_classes, backbone, published, image_size)
    set_limits(model, score_threshold, max_detections)
    if weights != published:
        load_weights(model, weights)
    return model


def _build_yolo(
    name: str,
    num_classes: int,
    backbone: str | None,
    weights: str,
    loss: Callable[..., DetectorLosses] | None,
) -> Yolo:
    size = YOLO_SIZES[name]
    if backbone is not None:
        features = build_backbone(backbone, weights)
    elif weights == "none":
        features = SyncBNBackbone(**size["backbone"])
    else:
        raise UserError(
            f'{name} has no published weights: choose weights="none" or the path of a file, or '
            "give it a backbone that has some, such as timm/resnet18."
        )
    model = Yolo(features, num_classes, loss, width=size["width"], depth=size["depth"])
    _freeze_unread(model.backbone, model.levels)
    return model


def _build_over_pyramid(
    name: str,
    num_classes: int,
    backbone: str | None,
    weights: str,
    image_size: tuple[int, int] | None,
) -> nn.Module:
    features = build_backbone(backbone or DEFAULT_BACKBONE, weights)
    if name == "fasterrcnn":
        model = build_faster_rcnn(features, num_classes)
    elif name == "retinanet":
        model = build_retinanet(features, num_classes, image_size)
    else:
        model = build_fcos(features, num_classes, image_size)
    _freeze_unread(features, model.backbone.levels)
    return model


def _freeze_unread(backbone: nn.Module, levels: list[int]) -> None:
    """Turn off the gradient of the parameters that no feature map of ``levels`` depends on."""
    freeze_unused(_Levels(backbone, levels))


class _Levels(nn.Module):
    def __init__(self, backbone: nn.Module, levels: list[int]) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, levels

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        features = self.backbone(x)
        return {level: features[level] for level in self.levels}
