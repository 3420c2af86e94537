"""The project's own detector: one stage, no anchors, of the YOLO family.

    backbone, feature maps at strides 8, 16, 32 → PAN neck → for each level and cell a score per
    class and one box

Every cell predicts a box by the offset of its centre from the cell's and by its size. The loss
decides during training which cells learn an object, so there are no anchor sizes to fit to a data
set. The finest stride of 8 reaches objects of some 8 pixels; a further level at stride 4 would find
smaller ones, with four times the cells and about twice the time of a step.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image

from data.pixels import IMAGENET
from errors import UserError
from models.blocks import ConvBNAct, ResidualBlock
from models.detector_interface import Detections, DetectorLosses

STRIDES = (8, 16, 32)

# Initial side of a predicted box in strides. That is 32, 64 and 128 pixels, about the middle of the
# sizes that each level is for.
START_SIZE = 4.0
# Initial score of every class and cell. Nearly all cells show no object, and with higher scores the
# first steps would only learn that (arXiv:1708.02002, section 3.3).
START_SCORE = 0.01

# The backbone (arguments of SyncBNBackbone), and the channels and blocks of neck and head.
YOLO_SIZES = {
    "yolo_nano": {
        "backbone": {"stem": 16, "widths": (32, 48, 96, 128), "depths": (1, 1, 1, 1)},
        "width": 48,
        "depth": 1,
    },
    "yolo_s": {
        "backbone": {"stem": 32, "widths": (64, 96, 192, 256), "depths": (1, 2, 2, 1)},
        "width": 96,
        "depth": 1,
    },
    "yolo_m": {
        "backbone": {"stem": 48, "widths": (96, 192, 384, 512), "depths": (2, 3, 3, 2)},
        "width": 192,
        "depth": 2,
    },
}


class CSPBlock(nn.Module):
    """Residual blocks on half of the channels; the other half passes by (arXiv:1911.11929).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        depth: number of residual blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int = 1) -> None:
        super().__init__()
        half = out_channels // 2
        self.past = ConvBNAct(in_channels, half, 1)
        self.through = nn.Sequential(
            ConvBNAct(in_channels, half, 1), *(ResidualBlock(half, half) for _ in range(depth))
        )
        self.merge = ConvBNAct(2 * half, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        return self.merge(torch.cat([self.past(x), self.through(x)], 1))


class PAN(nn.Module):
    """Path aggregation (arXiv:1803.01534): from coarse maps to fine ones, and back to coarse ones.

    Args:
        in_channels: of the backbone's maps, fine to coarse.
        width: channels of every map that comes out.
        depth: residual blocks in each block.
        extra: levels added below the coarsest, each by a convolution of stride 2.
    """

    def __init__(
        self, in_channels: Sequence[int], width: int, depth: int = 1, *, extra: int = 0
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvBNAct(channels, width, 1) for channels in in_channels)
        self.extra = nn.ModuleList(ConvBNAct(width, width, 3, 2) for _ in range(extra))
        steps = len(in_channels) + extra - 1
        self.top_down = nn.ModuleList(CSPBlock(2 * width, width, depth) for _ in range(steps))
        self.down = nn.ModuleList(ConvBNAct(width, width, 3, 2) for _ in range(steps))
        self.bottom_up = nn.ModuleList(CSPBlock(2 * width, width, depth) for _ in range(steps))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, H_i, W_i)], fine to coarse → [(B, width, H_i, W_i)], with the extra levels."""
        maps = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        for i in reversed(range(len(maps) - 1)):
            coarse = F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
            maps[i] = self.top_down[i](torch.cat([maps[i], coarse], 1))
        for i in range(len(maps) - 1):
            fine = self.down[i](maps[i])
            if fine.shape != maps[i + 1].shape:  # the backbone rounds odd sizes down
                fine = F.interpolate(fine, size=maps[i + 1].shape[-2:], mode="nearest")
            maps[i + 1] = self.bottom_up[i](torch.cat([maps[i + 1], fine], 1))
        return maps


class DecoupledHead(nn.Module):
    """Scores and boxes of one level, each by two convolutions of its own (arXiv:2107.08430).

    Args:
        width: channels of the level's map.
        num_classes: K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls = nn.Sequential(
            ConvBNAct(width, width), ConvBNAct(width, width), nn.Conv2d(width, num_classes, 1)
        )
        self.box = nn.Sequential(
            ConvBNAct(width, width), ConvBNAct(width, width), nn.Conv2d(width, 4, 1)
        )
        for last in (self.cls[-1], self.box[-1]):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.cls[-1].bias, math.log(START_SCORE / (1 - START_SCORE)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width, H, W) → logits (B, H * W, K) and codes of boxes (B, H * W, 4)."""
        return self.cls(x).flatten(2).mT, self.box(x).flatten(2).mT


class Yolo(nn.Module):
    """The detector over a backbone; models/detector_interface.py says what goes in and out.

    Its losses are to be divided by the global sum of ``positives``, which is known only after the
    forward pass.

    Args:
        backbone: with a feature map at stride 8; the strides it lacks are added.
        num_classes: K.
        loss: called as ``loss(logits, boxes, centers, strides, targets)`` in the forward pass, with
            logits (B, A, K), boxes (B, A, 4) in pixels, and each prediction's cell: centers (A, 2)
            and strides (A,). None for a network that only detects.
        width: channels of neck and heads.
        depth: residual blocks in each block of the neck.

    Raises:
        UserError: the backbone has no feature map at stride 8.
    """

    divides_by = "positives"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        loss: Callable[..., DetectorLosses] | None = None,
        *,
        width: int = 48,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.levels = [backbone.strides.index(s) for s in STRIDES if s in backbone.strides]
        if STRIDES[0] not in backbone.strides:
            raise UserError(
                f"This backbone has feature maps at strides {backbone.strides}, and the detector "
                f"needs one at {STRIDES[0]}: choose another backbone, such as timm/resnet18."
            )
        channels = [backbone.channels[level] for level in self.levels]
        self.backbone = backbone
        # A backbone with this attribute would enlarge images of other sizes, and with them the
        # strides. Padding them here keeps the strides.
        self.multiple = getattr(backbone, "round_to", 1)
        self.neck = PAN(channels, width, depth, extra=len(STRIDES) - len(channels))
        self.heads = nn.ModuleList(DecoupledHead(width, num_classes) for _ in STRIDES)
        self.score_thresh, self.detections_per_img = 0.001, 100  # torchvision's names
        # Constants, which weights files don't hold.
        rgb = torch.tensor(IMAGENET)[:, :, None, None]
        self.register_buffer("mean", rgb[0], persistent=False)
        self.register_buffer("std", rgb[1], persistent=False)

    def forward(
        self, images: Tensor, targets: dict[str, Tensor] | None = None, detect: bool = False
    ) -> DetectorLosses | list[Detections] | tuple[DetectorLosses, list[Detections]]:
        """Losses where targets are given, else detections; with ``detect`` both.

        Raises:
            ValueError: targets are given and the network has no loss.
        """
        if targets is not None and self.loss is None:
            raise ValueError("This Yolo was built with loss=None, so it takes no targets.")
        logits, codes, sizes, padded = self.raw(images)
        with torch.autocast(images.device.type, enabled=False):
            centers, strides = cells(sizes, padded, codes)
            boxes = decode(codes, centers, strides)
            if targets is None:
                return self._select(boxes, logits, images.shape[-2:])
            losses = self.loss(logits, boxes, centers, strides, targets)
            return (losses, self._select(boxes, logits, images.shape[-2:])) if detect else losses

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]], tuple[int, int]]:
        """What the layers compute, in full precision.

        IoU in half precision is too coarse to learn from.

        Returns:
            Logits (B, A, K), codes of boxes (B, A, 4), (height, width) of each level's map, and of
            the padded images.
        """
        height, width = images.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = F.pad((images - self.mean) / self.std, padding)
        features = self.backbone(padded)
        maps = self.neck([features[level] for level in self.levels])
        logits, codes = zip(
            *(head(m) for head, m in zip(self.heads, maps, strict=True)), strict=True
        )
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        sizes = [m.shape[-2:] for m in maps]
        return (
            torch.cat(logits, 1).to(dtype),
            torch.cat(codes, 1).to(dtype),
            sizes,
            padded.shape[-2:],
        )

    def _select(self, boxes: Tensor, logits: Tensor, size: tuple[int, int]) -> list[Detections]:
        limits = {
            "score_threshold": self.score_thresh,
            "max_detections": self.detections_per_img,
        }
        scores = logits.sigmoid()
        return [
            select_detections(*found, size, **limits) for found in zip(boxes, scores, strict=True)
        ]


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.6,
    candidates: int = 1000,
    max_detections: int = 100,
) -> Detections:
    """Non-maximum suppression for one image: of overlapping boxes of a class the best remains.

    Args:
        boxes: (A, 4) x1, y1, x2, y2; every box may be found as several classes.
        scores: (A, K) in [0, 1].
        image_size: (height, width), which the boxes are clipped to.
        score_threshold: detections with a lower score are left out.
        iou_threshold: boxes of one class that overlap more are the same object.
        candidates: how many of the best (box, class) pairs are looked at.
        max_detections: how many remain at most.
    """
    classes = scores.shape[1]
    best, index = scores.flatten().topk(min(candidates, scores.numel()))
    kept = (best > score_threshold).nonzero().flatten()  # the host waits for the device here
    index, best = index[kept], best[kept]
    found = clip_boxes_to_image(boxes[index // classes], image_size)
    labels = index % classes
    keep = batched_nms(found, best, labels, iou_threshold)[:max_detections]
    return {"boxes": found[keep], "scores": best[keep], "labels": labels[keep]}


def cells(
    sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], like: Tensor
) -> tuple[Tensor, Tensor]:
    """The cells of all levels, in pixels.

    The cells of a map that is too small for the level's stride lie further apart, so that those of
    each level cover the whole image.

    Args:
        sizes: (height, width) of each level's map.
        image_size: (height, width) of the image.
        like: gives type and device.

    Returns:
        Centres (A, 2) as x and y, and strides (A,).
    """
    options = {"dtype": like.dtype, "device": like.device}
    centers, strides = [], []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        down, across = max(stride, image_size[0] / height), max(stride, image_size[1] / width)
        y, x = torch.meshgrid(
            (torch.arange(height, **options) + 0.5) * down,
            (torch.arange(width, **options) + 0.5) * across,
            indexing="ij",
        )
        centers.append(torch.stack([x, y], -1).flatten(0, 1))
        strides.append(torch.full((height * width,), max(down, across), **options))
    return torch.cat(centers), torch.cat(strides)


def decode(codes: Tensor, centers: Tensor, strides: Tensor) -> Tensor:
    """The boxes that codes stand for.

    A code is the shift of the centre in strides, and the logarithm of the size in START_SIZE
    strides, which is limited so that every box stays finite.

    Args:
        codes: (..., A, 4).
        centers: (A, 2) x, y of each prediction's cell.
        strides: (A,) side of each prediction's cell.

    Returns:
        (..., A, 4) x1, y1, x2, y2 in pixels.
    """
    unit = strides.unsqueeze(-1)
    center = centers + codes[..., :2] * unit
    half = codes[..., 2:].clamp(-8, 8).exp() * (START_SIZE / 2 * unit)
    return torch.cat([center - half, center + half], -1)
