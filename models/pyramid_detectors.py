"""Faster R-CNN, RetinaNet and FCOS over any backbone, with BatchNorm that can be synchronised.

torchvision's parts around a backbone of models/backbones.py and a feature pyramid. Every
normalisation layer, in the backbone, the pyramid and the heads, is a plain ``nn.BatchNorm2d``.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from models.blocks import ConvBNAct
from models.torchvision_detectors import (
    FasterRCNNDetector,
    FCOSDetector,
    RetinaNetDetector,
    prepare,
)

MAX_WIDTH = 256  # channels of the pyramid, as published; small backbones get narrower ones
TOWER_DEPTH = 4
ANCHOR_RATIOS = (0.5, 1.0, 2.0)


class Pyramid(nn.Module):
    """A backbone and its feature pyramid (arXiv:1612.03144), as torchvision's detectors take it.

    Args:
        backbone: of models/backbones.py.
        finest: stride of the finest map that is read.
        extra: levels added below the coarsest, each by a convolution of stride 2.
        pool: add one level by subsampling the coarsest, as Faster R-CNN does for its proposals.
    """

    def __init__(
        self, backbone: nn.Module, finest: int, *, extra: int = 0, pool: bool = False
    ) -> None:
        super().__init__()
        self.levels = [i for i, s in enumerate(backbone.strides) if s >= finest]
        channels = [backbone.channels[i] for i in self.levels]
        self.backbone = backbone
        self.out_channels = min(MAX_WIDTH, max(channels))
        self.fpn = FeaturePyramidNetwork(
            channels,
            self.out_channels,
            extra_blocks=LastLevelMaxPool() if pool else None,
            norm_layer=nn.BatchNorm2d,
        )
        self.extra = nn.ModuleList(
            ConvBNAct(self.out_channels, self.out_channels, 3, 2) for _ in range(extra)
        )
        added = range(1, extra + pool + 1)
        strides = [backbone.strides[i] for i in self.levels]
        self.strides = strides + [strides[-1] * 2**i for i in added]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) → {"0": (B, out_channels, H / stride, W / stride), "1": ..., ...}."""
        features = self.backbone(x)
        maps = self.fpn(OrderedDict((str(n), features[i]) for n, i in enumerate(self.levels)))
        for extra in self.extra:
            maps[str(len(maps))] = extra(next(reversed(maps.values())))
        return maps


class JointTower(nn.Module):
    """3x3 convolutions shared by all levels of a pyramid, with BatchNorm over all levels together.

    One BatchNorm called level by level would train with each level's statistics and evaluate with
    a mixture of them that fits no level, which costs such heads much of their score
    (arXiv:2105.07576, section 5). Over all levels together there is one set of statistics, the same
    in training and evaluation, and SyncBatchNorm needs one exchange between processes instead of
    one per level.

    Args:
        channels: of every map.
        depth: number of convolutions.
    """

    def __init__(self, channels: int, depth: int = TOWER_DEPTH) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth))
        self.act = nn.ReLU()
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, channels, H_i, W_i)] → the same shapes."""
        sizes = [m.shape[-2:] for m in maps]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            pixels = torch.cat([conv(m).flatten(2) for m in maps], 2)
            pixels = self.act(norm(pixels.unsqueeze(-1))).squeeze(-1)
            parts = pixels.split([height * width for height, width in sizes], 2)
            maps = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        return maps


class _Towers:
    """Mixed into a dense head of torchvision: joint towers instead of its own convolutions."""

    def use_joint_towers(self, channels: int) -> None:
        self.cls_tower, self.box_tower = JointTower(channels), JointTower(channels)
        self.classification_head.conv = nn.Identity()
        self.regression_head.conv = nn.Identity()


class JointRetinaNetHead(_Towers, RetinaNetHead):
    """RetinaNet's head with BatchNorm over all levels."""

    def __init__(self, channels: int, num_anchors: int, num_classes: int) -> None:
        super().__init__(channels, num_anchors, num_classes)
        self.use_joint_towers(channels)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Maps of all levels → logits (B, A, K) and codes of boxes (B, A, 4)."""
        return {
            "cls_logits": self.classification_head(self.cls_tower(x)),
            "bbox_regression": self.regression_head(self.box_tower(x)),
        }


class JointFCOSHead(_Towers, FCOSHead):
    """FCOS's head with BatchNorm over all levels."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, 1, num_classes)
        self.use_joint_towers(channels)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Maps of all levels → logits (B, A, K), codes of boxes (B, A, 4), centreness (B, A, 1)."""
        boxes, centerness = self.regression_head(self.box_tower(x))
        return {
            "cls_logits": self.classification_head(self.cls_tower(x)),
            "bbox_regression": boxes,
            "bbox_ctrness": centerness,
        }


def build_faster_rcnn(backbone: nn.Module, num_classes: int) -> nn.Module:
    """Faster R-CNN with maps from stride 4 on and anchors of 8 strides, 32 pixels and up.

    It learns from 128 proposals per image, as in arXiv:1504.08083, section 2.3. torchvision takes
    512, for images of 800 pixels; most of a step's time is spent on them.
    """
    pyramid = Pyramid(backbone, 4, pool=True)
    pooled = [str(i) for i in range(len(pyramid.levels))]
    width = pyramid.out_channels
    model = FasterRCNNDetector(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * stride,) for stride in pyramid.strides),
            (ANCHOR_RATIOS,) * len(pyramid.strides),
        ),
        box_roi_pool=MultiScaleRoIAlign(pooled, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(width * 7**2, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, num_classes + 1),
        box_batch_size_per_image=128,
    )
    return prepare(model)


def build_retinanet(
    backbone: nn.Module, num_classes: int, image_size: tuple[int, int] | None = None
) -> nn.Module:
    """RetinaNet with maps from stride 8 on, each with three sizes of anchors from 4 strides on."""
    pyramid = _dense_pyramid(backbone, image_size)
    sizes = tuple(tuple(4 * s * 2 ** (i / 3) for i in range(3)) for s in pyramid.strides)
    anchors = AnchorGenerator(sizes, (ANCHOR_RATIOS,) * len(sizes))
    count = anchors.num_anchors_per_location()[0]
    head = JointRetinaNetHead(pyramid.out_channels, count, num_classes)
    return prepare(RetinaNetDetector(pyramid, num_classes, anchor_generator=anchors, head=head))


def build_fcos(
    backbone: nn.Module, num_classes: int, image_size: tuple[int, int] | None = None
) -> nn.Module:
    """FCOS with maps from stride 8 on."""
    pyramid = _dense_pyramid(backbone, image_size)
    anchors = AnchorGenerator(
        tuple((stride,) for stride in pyramid.strides), ((1.0,),) * len(pyramid.strides)
    )
    head = JointFCOSHead(pyramid.out_channels, num_classes)
    return prepare(FCOSDetector(pyramid, num_classes, anchor_generator=anchors, head=head))


def _dense_pyramid(backbone: nn.Module, image_size: tuple[int, int] | None) -> Pyramid:
    """Maps from stride 8 to 128, but no added one of less than 4 pixels.

    The anchors of such a level would be larger than the image.
    """
    coarsest = 128 if image_size is None else min(128, min(image_size) // 4)
    last, extra = backbone.strides[-1], 0
    while last * 2 ** (extra + 1) <= coarsest:
        extra += 1
    return Pyramid(backbone, 8, extra=extra)
