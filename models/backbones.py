"""Feature backbones by name: SyncBNNet in its sizes, and timm's networks as `timm/<name>`.

Every backbone maps (B, 3, H, W) to a list of feature maps, fine to coarse, and describes them by
`.channels: list[int]` and `.strides: list[int]`. Segmenters and detectors need nothing else.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.pixels import IMAGENET
from errors import UserError, unknown_name
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNBackbone
from models.weights import downloading


def build_backbone(
    name: str, weights: str = "none", *, output_stride: int | None = None
) -> nn.Module:
    """The backbone called `name`, with its published weights if `weights` is not "none".

    `output_stride` asks for a coarsest feature map of at most that stride (dilated convolutions in
    place of the last downsampling); a network that can't do this keeps its own strides.

    Raises UserError for an unknown name, a timm network that has no feature maps to give or takes
    only one size of picture, and for weights that do not exist or can't be fetched.
    """
    if name in SYNCBNNET_SIZES:
        if weights != "none":
            raise UserError(
                f"{name} has no published weights: leave --weights at none, pass the path of a "
                "file, or choose a backbone that has some, such as --backbone timm/resnet34."
            )
        return SyncBNBackbone(**SYNCBNNET_SIZES[name])

    # Imported here because it takes a second, which a run without it need not wait for.
    import timm

    timm_name = name.removeprefix("timm/")
    if timm_name == name or not timm.is_model(timm_name):
        known = [*SYNCBNNET_SIZES, *(f"timm/{known}" for known in timm.list_models())]
        raise unknown_name("backbone", name, known)
    return TimmBackbone(timm_name, pretrained=weights != "none", output_stride=output_stride)


class TimmBackbone(nn.Module):
    """A timm network cut down to its feature maps."""

    def __init__(
        self, name: str, *, pretrained: bool = False, output_stride: int | None = None
    ) -> None:
        super().__init__()
        import timm

        options = {"features_only": True}
        if output_stride is not None and _can_create(name, output_stride=output_stride):
            options["output_stride"] = output_stride
        self.round_to = _find_size_multiple(name, options)

        if not pretrained:
            self.net = timm.create_model(name, **options)
        elif timm.is_model_pretrained(name):
            with downloading(f"the weights of timm/{name}"):
                self.net = timm.create_model(name, pretrained=True, **options)
        else:
            raise UserError(f"timm has no published weights for {name}: use --weights none.")
        self.channels = list(self.net.feature_info.channels())
        self.strides = list(self.net.feature_info.reduction())
        self.channels_last = _is_channels_last(self.net)
        # Pictures come normalised with ImageNet's constants; some networks learnt from others.
        config = timm.get_pretrained_cfg(name)
        mine = (config.mean, config.std) if config else IMAGENET
        self.renormalises = mine != IMAGENET
        mean, std = (torch.tensor(values)[:, None, None] for values in mine)
        scale = torch.tensor(IMAGENET.std)[:, None, None] / std
        shift = (torch.tensor(IMAGENET.mean)[:, None, None] - mean) / std
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → [(B, C_i, about H / stride_i, about W / stride_i)]."""
        if self.renormalises:
            x = x * self.scale + self.shift
        size = [-(-s // self.round_to) * self.round_to for s in x.shape[-2:]]
        if size != list(x.shape[-2:]):
            # Resized, not padded: the feature maps still cover exactly the picture.
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
    """What a picture's height and width must be multiples of for this network: 1 for nearly all.

    timm does not say, so one is tried on the meta device, which computes shapes and no values.
    """
    import timm

    try:
        with torch.device("meta"):
            net = timm.create_model(name, **options)
    except Exception as error:
        raise UserError(
            f"timm/{name} can't be used as a backbone ({error}): choose a convolutional network "
            "such as timm/resnet34."
        ) from error
    for multiple in (1, max(net.feature_info.reduction())):
        height, width = (97, 161) if multiple == 1 else (3 * multiple, 5 * multiple)
        try:
            net(torch.empty(2, 3, height, width, device="meta"))
        except Exception:
            continue
        return multiple
    raise UserError(
        f"timm/{name} takes pictures of one size only and can't be used as a backbone: choose a "
        "convolutional network such as timm/resnet34."
    )
