"""The blocks that the project's own networks are built from, for images and for clips.

``dims`` is the number of convolved dimensions: 2 for images (B, C, H, W), 3 for clips
(B, C, T, H, W). Every normalisation layer is a plain ``nn.BatchNorm2d`` or ``nn.BatchNorm3d``;
``norm.convert_norm`` replaces them in the finished network.
"""

from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

# One number for all dimensions or one for each, such as (1, 3, 3) in a factorised 3-D convolution.
Size = int | tuple[int, ...]


class ConvBNAct(nn.Module):
    """Convolution → BatchNorm → SiLU (https://arxiv.org/abs/1702.03118).

    It is padded so that stride 1 keeps the size and stride 2 halves it, rounding up.
    ``act=False`` leaves the SiLU out, for a layer that ends a residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
        dims: int = 2,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * dims if isinstance(kernel_size, int) else kernel_size
        self.conv = CONV[dims](
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=tuple(k // 2 * dilation for k in kernel),
            dilation=dilation,
            groups=groups,
            bias=False,  # BatchNorm subtracts the mean, and any bias with it
        )
        self.bn = BATCH_NORM[dims](out_channels)
        self.act = nn.SiLU() if act else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) → (B, out_channels, *(size / stride))."""
        return self.act(self.bn(self.conv(x)))


class FactorizedConv(nn.Sequential):
    """A 3x3x3 ConvBNAct split into one over space (1x3x3) and one over time (3x1x1) after it.

    This is the (2+1)D convolution of https://arxiv.org/abs/1711.11248, section 3.5. The width in
    between is chosen so that it has about as many weights as the whole convolution, and it has
    twice the nonlinearities.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Size = 1, *, act: bool = True
    ) -> None:
        time, *space = (stride,) * 3 if isinstance(stride, int) else stride
        # The paper's formula for kernels of 3.
        hidden = 27 * in_channels * out_channels // (9 * in_channels + 3 * out_channels)
        super().__init__(
            ConvBNAct(in_channels, hidden, (1, 3, 3), (1, *space), dims=3),
            ConvBNAct(hidden, out_channels, (3, 1, 1), (time, 1, 1), act=act, dims=3),
        )

    @property
    def bn(self) -> nn.Module:
        """The last normalisation layer."""
        return self[-1].bn


def conv3(
    in_channels: int,
    out_channels: int,
    stride: Size = 1,
    *,
    act: bool = True,
    dims: int = 2,
    factorized: bool = False,
) -> ConvBNAct | FactorizedConv:
    """A ConvBNAct of kernel size 3 in every dimension, factorised (3-D only) if asked for."""
    if factorized:
        return FactorizedConv(in_channels, out_channels, stride, act=act)
    return ConvBNAct(in_channels, out_channels, 3, stride, act=act, dims=dims)


class SeparableConv(nn.Sequential):
    """A spatial ConvBNAct for each channel by itself, then a pointwise one that mixes the channels.

    It costs about 1/9 of a full convolution, which makes dilated convolutions of 256 channels
    affordable (https://arxiv.org/abs/1802.02611, section 3.1).
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__(
            ConvBNAct(in_channels, in_channels, 3, dilation=dilation, groups=in_channels),
            ConvBNAct(in_channels, out_channels, 1),
        )


class ResidualBlock(nn.Module):
    """x ↦ SiLU(shortcut(x) + branch(x)) with two 3x3 convolutions in the branch.

    The basic block of https://arxiv.org/abs/1512.03385. The last BatchNorm of the branch starts at
    gamma = 0: the block starts as its shortcut and the network as a shallow one, which trains more
    steadily from scratch (https://arxiv.org/abs/1706.02677, section 5.1). ``factorized`` is for
    ``dims=3``: see ``FactorizedConv``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size = 1,
        *,
        dims: int = 2,
        factorized: bool = False,
    ) -> None:
        super().__init__()
        kind = {"dims": dims, "factorized": factorized}
        self.branch = nn.Sequential(
            conv3(in_channels, out_channels, stride, **kind),
            conv3(out_channels, out_channels, act=False, **kind),
        )
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity()
            if same_shape
            else ConvBNAct(in_channels, out_channels, 1, stride, act=False, dims=dims)
        )
        self.act = nn.SiLU()
        nn.init.zeros_(self.branch[-1].bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) → (B, out_channels, *(size / stride))."""
        return self.act(self.shortcut(x) + self.branch(x))


class LogitsHead(nn.Sequential):
    """Feature map → one logit per class and pixel, at the feature map's resolution.

    It is a 1x1 convolution. With ``hidden`` channels of a 3x3 ConvBNAct before it, it is the
    auxiliary head of https://arxiv.org/abs/1612.01105, section 3.4.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int = 0) -> None:
        # PyTorch's own initialisation. Weights near zero, which detectors need because positives
        # are rare, would cost Adam some hundred steps in which the logits only grow.
        logits = nn.Conv2d(hidden or in_channels, num_classes, 1)
        super().__init__(*([ConvBNAct(in_channels, hidden)] if hidden else []), logits)
