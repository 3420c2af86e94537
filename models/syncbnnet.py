"""SyncBNNet, the project's own network: a small residual network, for images and for clips.

    stem (stride 2) → stage 1 (4) → stage 2 (8) → stage 3 (16) → global average pooling → linear

``SyncBNBackbone`` is everything before the pooling and returns each level's feature map;
segmenters and detectors are built over it. ``SyncBNNet`` adds the pooling and the linear layer.
All of them name it ``backbone``, so a classifier's weights load into a segmenter.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.blocks import ResidualBlock, conv3

# The arguments of SyncBNBackbone that each size stands for.
SYNCBNNET_SIZES = {
    "syncbnnet": {"stem": 16, "widths": (32, 64, 128), "depths": (1, 1, 1)},  # for a CPU
    "syncbnnet_s": {"stem": 24, "widths": (48, 96, 192), "depths": (2, 2, 2)},
    "syncbnnet_m": {"stem": 32, "widths": (64, 128, 256), "depths": (2, 3, 3)},
    "syncbnnet_l": {"stem": 64, "widths": (128, 256, 512), "depths": (3, 4, 6)},
}


class SyncBNBackbone(nn.Module):
    """The stem and the stages of SyncBNNet as a feature backbone.

    Args:
        stem: channels of the stem.
        widths: channels of each stage, which halves every dimension.
        depths: residual blocks of each stage.
        stem_stride: over height and width, never over time; 1 suits images as small as CIFAR's.
        dims: 2 for images, 3 for clips.
        factorized: for clips, split each convolution into one over space and one over time.

    Attributes:
        channels: of each feature map that ``forward`` returns.
        strides: of each feature map, over height and width.
    """

    def __init__(
        self,
        stem: int = 16,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (1, 1, 1),
        *,
        stem_stride: int = 2,
        dims: int = 2,
        factorized: bool = False,
    ) -> None:
        super().__init__()
        self.channels = [stem, *widths]
        self.strides = [stem_stride * 2**level for level in range(len(self.channels))]

        spatial_stride = (1,) * (dims - 2) + (stem_stride, stem_stride)
        kind = {"dims": dims, "factorized": factorized}
        self.stem = conv3(3, stem, spatial_stride, **kind)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            sizes = [self.channels[i]] + [widths[i]] * depth
            self.stages.append(
                nn.Sequential(
                    *(
                        ResidualBlock(sizes[j], sizes[j + 1], 2 if j == 0 else 1, **kind)
                        for j in range(depth)
                    )
                )
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → [(B, C_i, H / stride_i, W / stride_i)], sizes rounded up.

        Clips (B, 3, T, H, W) likewise; every stage halves T too.
        """
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class SyncBNNet(nn.Module):
    """A classifier: SyncBNBackbone → global average pooling → linear.

    Args:
        num_classes: number of logits.
        **backbone_options: of ``SyncBNBackbone``, such as ``SYNCBNNET_SIZES["syncbnnet_s"]``.
    """

    def __init__(self, num_classes: int, **backbone_options) -> None:
        super().__init__()
        self.backbone = SyncBNBackbone(**backbone_options)
        self.head = nn.Linear(self.backbone.channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), or (B, 3, T, H, W) with ``dims=3`` → logits (B, num_classes)."""
        x = self.backbone(x)[-1]
        return self.head(x.mean(dim=tuple(range(2, x.ndim))))
