"""DeepLabV3+ over any backbone (https://arxiv.org/abs/1802.02611)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvBNAct, LogitsHead, SeparableConv

WIDTH = 256  # channels of ASPP and decoder, as published; small backbones get fewer
RATES = (6, 12, 18)  # dilations of ASPP for a coarsest feature map at stride 16


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one feature map seen at several distances at once.

    A 1x1 convolution, a dilated separable one per rate and the image's average, joined and mixed
    (https://arxiv.org/abs/1706.05587, section 3.3).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvBNAct(in_channels, out_channels, 1),
                *(SeparableConv(in_channels, out_channels, dilation=rate) for rate in RATES),
            ]
        )
        # No BatchNorm here, unlike the paper: it would see one value per image and channel, so a
        # batch of 1 could not train at all, and one of 2 would be normalised to plus or minus 1.
        self.pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1), nn.SiLU()
        )
        self.mix = ConvBNAct(out_channels * (len(RATES) + 2), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, h, w)."""
        average = self.pool(x).expand(-1, -1, *x.shape[-2:])
        return self.mix(torch.cat([*(branch(x) for branch in self.branches), average], dim=1))


class DeepLabV3Plus(nn.Module):
    """ASPP on the coarsest feature map, and a decoder that sharpens it with the one at stride 4.

    Args:
        backbone: of ``models.backbones``.
        num_classes: number of logits per pixel.
        aux_loss: whether there is an auxiliary head.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, aux_loss: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        channels = backbone.channels
        width = min(WIDTH, channels[-1])
        # The coarsest map of stride 4 or less, or the finest there is.
        self.low_level = max(sum(stride <= 4 for stride in backbone.strides) - 1, 0)
        low_width = min(48, channels[self.low_level])

        self.aspp = ASPP(channels[-1], width)
        self.low = ConvBNAct(channels[self.low_level], low_width, 1)
        self.decoder = nn.Sequential(
            SeparableConv(width + low_width, width), SeparableConv(width, width)
        )
        self.head = LogitsHead(width, num_classes)
        self.aux_head = (
            LogitsHead(channels[-2], num_classes, channels[-2] // 4) if aux_loss else None
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → {"out": (B, num_classes, H, W)}, in training also "aux" of this shape."""
        features = self.backbone(x)
        low = self.low(features[self.low_level])
        context = resize(self.aspp(features[-1]), low)
        decoded = self.decoder(torch.cat([context, low], dim=1))
        result = {"out": resize(self.head(decoded), x)}
        if self.aux_head is not None and self.training:
            result["aux"] = resize(self.aux_head(features[-2]), x)
        return result


def resize(x: Tensor, like: Tensor) -> Tensor:
    """``x`` resized bilinearly to the height and width of ``like``."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
