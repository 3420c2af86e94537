"""The detection models by name: `build_detection_model("yolo_nano", num_classes=6)`.

models.detector_interface.py says what goes into every one of them and what comes out.
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

DEFAULT_BACKBONE = "syncbnnet"
SMALLEST_SIDE = 32  # the coarsest map that every model has is a 32nd of the picture


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
    """The detection model called `name`; DETECTION_MODELS lists them.

    Args:
        name: of the model.
        num_classes: without a background.
        backbone: of fasterrcnn, retinanet and fcos, and in place of a yolo's own; see
            models/backbones.py.
        weights:
            none      random, by torch's global generator
            default   all that is published: torchvision's detector, or the backbone of an own
                      model; what a head says of classes that it doesn't know stays random
            backbone  the backbone trained on ImageNet, the rest random
            a path    a .safetensors or .pth file; what does not fit is logged
        trainable_layers: how many stages of a published torchvision detector's backbone train;
            None leaves it to torchvision.
        image_size: (height, width) of the pictures to come. retinanet and fcos have coarser maps
            for larger ones; without it as many as published, which are for some 800 pixels.
        class_names: name of each class, by which a published head finds those it knows.
        yolo_loss: what a yolo computes its losses by; see models/yolo.py. The others bring theirs.
        score_threshold: detections that score less are left out. 0.001 for measuring average
            precision, which wants the weak ones too; 0.3 or so for looking at pictures.
        max_detections: in a picture at most.

    Raises:
        UserError: an unknown name, a combination that does not exist, or pictures too small.
    """
    if name not in DETECTION_MODELS:
        raise unknown_name("detection model", name, DETECTION_MODELS)
    if image_size is not None and min(image_size) < SMALLEST_SIDE:
        raise UserError(
            f"pictures of {image_size[0]}x{image_size[1]} are too small for {name}, whose coarsest "
            f"map is a {SMALLEST_SIDE}nd of the picture: make both sides at least {SMALLEST_SIDE}."
        )
    published = weights if weights in NAMED_WEIGHTS else "none"
    build = DETECTION_MODELS[name]
    if build is build_torchvision_detector:
        if backbone is not None:
            raise UserError(
                f"{name} has its backbone built in: leave out --backbone {backbone}, or choose a "
                "model that takes one, such as --model fasterrcnn or yolo_s."
            )
        options = {"trainable_layers": trainable_layers, "class_names": class_names}
        model = build(name, num_classes, weights=published, **options)
    else:
        if trainable_layers is not None:
            raise UserError(
                f"--trainable_layers is for torchvision's published detectors, and {name} trains "
                "all of its layers: leave it out."
            )
        model = build(name, num_classes, backbone, published, image_size)
        if isinstance(model, Yolo):
            model.loss = yolo_loss
    set_limits(model, score_threshold, max_detections)
    if weights != published:
        load_weights(model, weights)
    return model


def _build_yolo(
    name: str, num_classes: int, backbone: str | None, weights: str, _: tuple[int, int] | None
) -> nn.Module:
    size = YOLO_SIZES[name]
    if backbone is not None:
        features = build_backbone(backbone, weights)
    elif weights == "none":
        features = SyncBNBackbone(**size["backbone"])
    else:
        raise UserError(
            f"{name} has no published weights: leave --weights at none, pass the path of a file, "
            "or give it a backbone that has some, such as --backbone timm/resnet18."
        )
    model = Yolo(features, num_classes, width=size["width"], depth=size["depth"])
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
    else:
        build = {"retinanet": build_retinanet, "fcos": build_fcos}[name]
        model = build(features, num_classes, image_size)
    _freeze_unread(features, model.backbone.levels)
    return model


def _freeze_unread(backbone: nn.Module, levels: list[int]) -> None:
    """Turns off the gradient of parameters that no feature map of `levels` depends on."""
    freeze_unused(_Levels(backbone, levels))


class _Levels(nn.Module):
    def __init__(self, backbone: nn.Module, levels: list[int]) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, levels

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        features = self.backbone(x)
        return {level: features[level] for level in self.levels}


DETECTION_MODELS = {
    **dict.fromkeys(YOLO_SIZES, _build_yolo),
    **dict.fromkeys(["fasterrcnn", "retinanet", "fcos"], _build_over_pyramid),
    **dict.fromkeys(
        [
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
        ],
        build_torchvision_detector,
    ),
}
