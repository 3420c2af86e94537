"""The video classifiers by name: `build_video_model("syncbnnet3d", num_classes=4)`.

Every model maps normalised clips (B, 3, T, H, W) to logits (B, num_classes).
"""

from functools import partial

import torchvision
from torch import Tensor, nn

from data.pixels import IMAGENET, PixelScaling
from errors import unknown_name
from models.dry_run import dry_run
from models.published import load_published, wants_published
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNNet
from models.weights import NAMED_WEIGHTS, load_weights

# Clips that torchvision's networks take, where that isn't nearly any.
REQUIRED = {
    "s3d": "at least 13 frames of 209x209 pixels",
    "mvit_v1_b": "16 frames of 224x224 pixels",
    "mvit_v2_s": "16 frames of 224x224 pixels",
}
USUAL_CLIP = (16, 224, 224)


class SingleFrame(SyncBNNet):
    """SyncBNNet for pictures on the middle frame of a clip: what can be told without motion."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) → logits (B, num_classes)."""
        return super().forward(x[:, :, x.shape[2] // 2])


def _sizes(name: str, **options) -> dict[str, partial]:
    """SyncBNNet under `name` in the sizes that train on clips in reasonable time."""
    return {
        name + size.removeprefix("syncbnnet"): partial(
            SyncBNNet, dims=3, **SYNCBNNET_SIZES[size], **options
        )
        for size in ("syncbnnet", "syncbnnet_s", "syncbnnet_m")
    }


OWN_MODELS = {
    **_sizes("syncbnnet3d"),
    **_sizes("syncbnnet2plus1d", factorized=True),
    "single_frame": partial(SingleFrame, **SYNCBNNET_SIZES["syncbnnet"]),
}
TORCHVISION_MODELS = tuple(torchvision.models.list_models(module=torchvision.models.video))
VIDEO_MODELS = (*OWN_MODELS, *TORCHVISION_MODELS)


def build_video_model(
    name: str,
    num_classes: int,
    *,
    weights: str = "none",
    clip_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """The video classifier called `name`; VIDEO_MODELS lists them.

    Args:
        name: the model.
        num_classes: number of logits.
        weights: none (random, by torch's global generator), default (torchvision's, trained on
            Kinetics-400; a head of other classes stays random) or the path of a file; what does
            not fit is logged.
        clip_size: (frames, height, width) of the clips that the model will see.

    Raises:
        UserError: an unknown name, clips that the model can't take, weights that do not exist or
            can't be fetched.
    """
    if name not in VIDEO_MODELS:
        raise unknown_name("video model", name, VIDEO_MODELS)
    published = wants_published(weights, name, name in OWN_MODELS, "r2plus1d_18")
    if name in OWN_MODELS:
        model = OWN_MODELS[name](num_classes)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if published:
        load_published(model, name)
    if weights not in NAMED_WEIGHTS:
        load_weights(model, weights)
    required = f"it takes clips of {REQUIRED[name]}" if name in REQUIRED else "choose longer ones"
    dry_run(model, name, (3, *(clip_size or USUAL_CLIP)), required)
    return model


def pixel_scaling(name: str) -> PixelScaling:
    """The scaling of pixels with which the video classifier `name` was trained.

    torchvision's networks differ. To the project's own it makes no difference.
    """
    if name not in TORCHVISION_MODELS:
        return IMAGENET
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return PixelScaling(tuple(preset.mean), tuple(preset.std))
