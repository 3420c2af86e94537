"""U-Net over any backbone (https://arxiv.org/abs/1505.04597)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvBNAct, LogitsHead

WIDTH = 16  # channels of the decoder at full resolution


class DecoderBlock(nn.Module):
    """Enlarge the coarse features to the skip's size, join the two and mix them."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            ConvBNAct(in_channels + skip_channels, out_channels),
            ConvBNAct(out_channels, out_channels),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, h, w) and (B, skip_channels, H, W) → (B, out_channels, H, W)."""
        # To the skip's own size, not by 2: odd sizes are rounded up on the way down.
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.mix(torch.cat([x, skip], dim=1))


class UNet(nn.Module):
    """Decode a backbone's feature maps, coarse to fine, back to the input's resolution.

    The finest skip is the image itself: backbones begin at stride 2 or 4, and outlines predicted
    at that resolution and enlarged are off by a pixel or two.

    Args:
        backbone: of ``models.backbones``.
        num_classes: number of logits per pixel.
        aux_loss: whether there is an auxiliary head.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, aux_loss: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        channels = [3, *backbone.channels]
        strides = [1, *backbone.strides]

        # WIDTH channels at full resolution and twice as many with each halving, but no more than
        # the skip has: the decoder stays cheaper than the backbone.
        self.decoder = nn.ModuleList()
        x_channels = channels[-1]
        for skip_channels, stride in zip(channels[-2::-1], strides[-2::-1], strict=True):
            out_channels = WIDTH if stride == 1 else min(WIDTH * stride, skip_channels)
            self.decoder.append(DecoderBlock(x_channels, skip_channels, out_channels))
            x_channels = out_channels
        self.head = LogitsHead(x_channels, num_classes)

        aux_channels = backbone.channels[-2]
        self.aux_head = (
            LogitsHead(aux_channels, num_classes, aux_channels // 4) if aux_loss else None
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → {"out": (B, num_classes, H, W)}, in training also "aux" of this shape."""
        skips = [x, *self.backbone(x)]
        features = skips[-1]
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            features = block(features, skip)
        result = {"out": self.head(features)}
        if self.aux_head is not None and self.training:
            aux = self.aux_head(skips[-2])
            result["aux"] = F.interpolate(aux, x.shape[-2:], mode="bilinear", align_corners=False)
        return result
