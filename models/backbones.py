"""Feature backbones by name: SyncBNNet in its sizes, and timm's networks as ``timm/<name>``.

Every backbone maps images (B, 3, H, W) to a list of feature maps, fine to coarse, and describes
them by ``.channels: list[int]`` and ``.strides: list[int]``. Segmenters and detectors need nothing
else.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.pixels import IMAGENET
from errors import UserError
from models.pretrained import downloading, find_in_timm, nothing_published, pixel_scaling
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNBackbone

ADVICE = "choose a convolutional network such as timm/resnet34"


def build_backbone(
    name: str, weights: str = "none", *, output_stride: int | None = None
) -> nn.Module:
    """The backbone called ``name``.

    Args:
        name: one of ``SYNCBNNET_SIZES``, or ``timm/<name>``.
        weights: "none" (random, by torch's global generator), or "default" or "backbone" for the
            published ones.
        output_stride: largest stride of a feature map, reached by dilated convolutions in place of
            the last downsampling. A network that can't do this keeps its own strides.

    Raises:
        UserError: the name is unknown, the network has no feature maps to give or takes images of
            one size only, or the weights do not exist or can't be fetched.
    """
    pretrained = weights != "none"
    if name not in SYNCBNNET_SIZES:
        timm_name = find_in_timm("backbone", name, list(SYNCBNNET_SIZES), pretrained=pretrained)
        return TimmBackbone(timm_name, pretrained=pretrained, output_stride=output_stride)
    if pretrained:
        raise nothing_published(name, 'a backbone that has some, such as backbone="timm/resnet34"')
    return SyncBNBackbone(**SYNCBNNET_SIZES[name])


class TimmBackbone(nn.Module):
    """A timm network cut down to its feature maps, for images scaled with ImageNet's constants.

    Args:
        name: timm's own name of the network.
        pretrained: whether to load its published weights.
        output_stride: see ``build_backbone``.

    Attributes:
        channels: of each feature map, fine to coarse.
        strides: of each feature map.

    Raises:
        UserError: the network can't be a backbone, or its weights can't be fetched.
    """

    def __init__(
        self, name: str, *, pretrained: bool = False, output_stride: int | None = None
    ) -> None:
        super().__init__()
        # Imported here because it takes a second, which a run without it need not wait for.
        import timm

        options = {"features_only": True}
        if output_stride is not None and _can_create(name, output_stride=output_stride):
            options["output_stride"] = output_stride
        self.round_to = _find_size_multiple(name, options)

        if pretrained:
            with downloading(f"the weights of timm/{name}"):
                self.net = timm.create_model(name, pretrained=True, **options)
        else:
            self.net = timm.create_model(name, **options)
        self.channels = list(self.net.feature_info.channels())
        self.strides = list(self.net.feature_info.reduction())
        self.channels_last = _is_channels_last(self.net)
        # Images arrive scaled with ImageNet's constants; some networks were trained with others.
        scaling = pixel_scaling(f"timm/{name}")
        self.rescales = scaling != IMAGENET
        mean, std = (torch.tensor(values)[:, None, None] for values in scaling)
        scale = torch.tensor(IMAGENET.std)[:, None, None] / std
        shift = (torch.tensor(IMAGENET.mean)[:, None, None] - mean) / std
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → [(B, C_i, about H / stride_i, about W / stride_i)]."""
        if self.rescales:
            x = x * self.scale + self.shift
        size = [-(-s // self.round_to) * self.round_to for s in x.shape[-2:]]
        if size != list(x.shape[-2:]):
            # Resized, not padded: the feature maps still cover exactly the image.
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        features = self.net(x)
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_last else features


def _is_channels_last(net: nn.Module) -> bool:
    """Whether a timm network's feature maps are (B, H, W, C), as those of Swin are."""
    output_format = getattr(net, "output_fmt", None)
    return getattr(output_format, "value", output_format) == "NHWC"


def _can_create(name: str, **options) -> bool:
    """Whether timm builds this network with these options (tried without memory, on meta)."""
    import timm

    try:
        with torch.device("meta"):
            timm.create_model(name, features_only=True, **options)
    except (TypeError, AssertionError, NotImplementedError):
        return False
    return True


def _find_size_multiple(name: str, options: dict) -> int:
    """What an image's height and width must be multiples of for this network: 1 for nearly all.

    timm does not say, so the network is tried on the meta device, which computes shapes and no
    values.
    """
    import timm

    try:
        with torch.device("meta"):
            net = timm.create_model(name, **options)
    except Exception as error:
        raise UserError(f"timm/{name} can't be used as a backbone ({error}): {ADVICE}.") from error
    for multiple in (1, max(net.feature_info.reduction())):
        height, width = (97, 161) if multiple == 1 else (3 * multiple, 5 * multiple)
        try:
            net(torch.empty(2, 3, height, width, device="meta"))
        except Exception:
            continue
        return multiple
    raise UserError(
        f"timm/{name} takes images of one size only and can't be used as a backbone: {ADVICE}."
    )
