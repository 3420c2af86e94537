"""DeepLabV3+ over any backbone (https://arxiv.org/abs/1802.02611)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvBNAct, LogitsHead, SeparableConv


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one feature map seen at several distances at once.

    A 1x1 convolution, a dilated separable one per rate and the picture's average, joined and mixed
    (https://arxiv.org/abs/1706.05587, section 3.3).
    """

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvBNAct(in_channels, out_channels, 1),
                *(SeparableConv(in_channels, out_channels, dilation=rate) for rate in rates),
            ]
        )
        # No BatchNorm here, unlike the paper: it would see one value per picture and channel, so a
        # batch of 1 could not train at all, and one of 2 would be normalised to plus or minus 1.
        self.pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1), nn.SiLU()
        )
        self.mix = ConvBNAct(out_channels * (len(rates) + 2), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, h, w)."""
        picture = self.pool(x).expand(-1, -1, *x.shape[-2:])
        return self.mix(torch.cat([*(branch(x) for branch in self.branches), picture], dim=1))


class DeepLabV3Plus(nn.Module):
    """ASPP on the coarsest feature map, and a decoder that sharpens it with the one at stride 4.

    `width` is the number of channels of ASPP and decoder: the paper's 256, or what the backbone
    ends with if that is less.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        width: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        aux_loss: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        channels = backbone.channels
        width = min(width, channels[-1])
        # The coarsest map that is no coarser than a quarter, or the finest there is.
        self.low_level = max(sum(stride <= 4 for stride in backbone.strides) - 1, 0)
        low_width = min(48, channels[self.low_level])

        self.aspp = ASPP(channels[-1], width, rates)
        self.low = ConvBNAct(channels[self.low_level], low_width, 1)
        self.decoder = nn.Sequential(
            SeparableConv(width + low_width, width), SeparableConv(width, width)
        )
        self.head = LogitsHead(width, num_classes)
        self.aux_head = (
            LogitsHead(channels[-2], num_classes, channels[-2] // 4) if aux_loss else None
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → {"out": (B, num_classes, H, W)}, and "aux" alike while training."""
        features = self.backbone(x)
        low = self.low(features[self.low_level])
        context = resize(self.aspp(features[-1]), low)
        decoded = self.decoder(torch.cat([context, low], dim=1))
        result = {"out": resize(self.head(decoded), x)}
        if self.aux_head is not None and self.training:
            result["aux"] = resize(self.aux_head(features[-2]), x)
        return result


def resize(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`, bilinearly."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
