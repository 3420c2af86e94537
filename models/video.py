"""The video classifiers by name: ``build_video_model("syncbnnet3d", num_classes=4)``.

Every model maps clips (B, 3, T, H, W), whose pixels are scaled as
``models.pretrained.pixel_scaling`` says, to logits (B, num_classes).
"""

from functools import partial

import torchvision
from torch import Tensor, nn

from errors import unknown_name
from models.dry_run import dry_run
from models.pretrained import load_published, wants_published
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNNet
from models.weights import load_weights

# The clips that some of torchvision's networks need; the others take nearly any.
REQUIRED = {
    "s3d": "at least 13 frames of 209x209 pixels",
    "mvit_v1_b": "16 frames of 224x224 pixels",
    "mvit_v2_s": "16 frames of 224x224 pixels",
}
USUAL_CLIP = (16, 224, 224)


class SingleFrame(SyncBNNet):
    """SyncBNNet for images on the middle frame of a clip: what can be seen without motion."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) → logits (B, num_classes)."""
        return super().forward(x[:, :, x.shape[2] // 2])


def _sizes(name: str, **options) -> dict[str, partial]:
    """SyncBNNet under ``name`` in the sizes that train on clips in reasonable time."""
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
    """The video classifier called ``name``.

    Args:
        name: one of ``VIDEO_MODELS``.
        num_classes: number of logits.
        weights: "none" (random, by torch's global generator), "default" (torchvision's, trained on
            Kinetics-400; a head for other classes stays random) or the path of a file; what does
            not fit is logged.
        clip_size: (frames, height, width) of the clips that the model will see.

    Raises:
        UserError: the name is unknown, the model can't take the clips, or the weights do not exist
            or can't be fetched.
    """
    if name not in VIDEO_MODELS:
        raise unknown_name("video model", name, VIDEO_MODELS)
    published = wants_published(weights, name, tuple(OWN_MODELS), "r2plus1d_18")
    if name in OWN_MODELS:
        model = OWN_MODELS[name](num_classes)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if published:
        load_published(model, name)
    load_weights(model, weights)
    advice = "choose longer or larger clips"
    if name in REQUIRED:
        advice = f"it takes clips of {REQUIRED[name]}"
    dry_run(model, name, (3, *(clip_size or USUAL_CLIP)), advice)
    return model
