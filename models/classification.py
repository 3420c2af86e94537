"""The image classifiers by name: `build_classification_model("resnet18", num_classes=10)`.

The project's own networks, all of torchvision's and all of timm's. Every one maps normalised
pictures (B, 3, H, W) to logits (B, num_classes). Auxiliary classifiers are left out.
"""

from contextlib import nullcontext
from functools import partial

import torchvision
from torch import nn

from data.pixels import IMAGENET, PixelScaling
from errors import UserError, unknown_name
from models.dry_run import dry_run
from models.lenet import LeNet
from models.published import load_published, wants_published
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNNet
from models.weights import NAMED_WEIGHTS, downloading, load_weights

OWN_MODELS = (*SYNCBNNET_SIZES, "lenet")
TORCHVISION_MODELS = tuple(torchvision.models.list_models(module=torchvision.models))
CLASSIFICATION_MODELS = (*OWN_MODELS, *TORCHVISION_MODELS)  # and timm/<name>

# Pictures up to this side are too small to be halved by the stem.
SMALL_PICTURE = 40
USUAL_SIZE = (224, 224)
# Images are scaled alike for all models; these two then undo that and apply their own.
OWN_SCALING = ("googlenet", "inception_v3")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # their auxiliary classifiers


def build_classification_model(
    name: str,
    num_classes: int,
    *,
    weights: str = "none",
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """The image classifier called `name`: one of CLASSIFICATION_MODELS, or `timm/<name>`.

    Args:
        name: the model.
        num_classes: number of logits.
        weights: none (random, by torch's global generator), default (trained on ImageNet; a head
            of other classes stays random) or the path of a file; what does not fit is logged.
        in_channels: channels of the pictures; torchvision's models take 3 only.
        image_size: (height, width) of the pictures that the model will see. SyncBNNet keeps small
            ones at their resolution in its stem, and transformers are built for the size.

    Raises:
        UserError: an unknown name, a size that the model can't take, weights that do not exist or
            can't be fetched.
    """
    published = wants_published(weights, name, name in OWN_MODELS, "resnet18")
    if name in OWN_MODELS:
        model = _own(name, num_classes, in_channels, image_size)
    elif name in TORCHVISION_MODELS:
        model = _torchvision(name, num_classes, in_channels, image_size, published)
    else:
        model = _timm(name, num_classes, in_channels, image_size, published)
    if weights not in NAMED_WEIGHTS:
        load_weights(model, weights)
    size = image_size or _usual_size(name)
    dry_run(model, name, (in_channels, *size), "choose another --image_size or --model")
    return model


def pixel_scaling(name: str) -> PixelScaling:
    """The scaling of pixels with which the classifier `name` was trained.

    ImageNet's for nearly all. To a network without published weights it makes no difference.
    """
    if name in TORCHVISION_MODELS:
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return PixelScaling(tuple(preset.mean), tuple(preset.std))
    if not name.startswith("timm/"):
        return IMAGENET
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    return PixelScaling(tuple(config.mean), tuple(config.std)) if config else IMAGENET


def _own(
    name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None
) -> nn.Module:
    if name == "lenet":
        return LeNet(num_classes, in_channels)
    small = image_size is not None and max(image_size) <= SMALL_PICTURE
    options = SYNCBNNET_SIZES[name] | {"in_channels": in_channels, "stem_stride": 2 - small}
    return SyncBNNet(num_classes, **options)


def _torchvision(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    published: bool,
) -> nn.Module:
    if in_channels != 3:
        raise UserError(
            f"{name} takes pictures of 3 channels, not {in_channels}: choose one of timm's, such "
            "as --model timm/resnet18."
        )
    options = {}
    if name in OWN_SCALING:
        # Also without published weights: a file of weights must find the network it was saved from.
        options = {"aux_logits": False, "transform_input": True, "init_weights": not published}
    elif name.startswith("vit_") and image_size is not None:
        if image_size[0] != image_size[1]:
            raise UserError(
                f"{name} takes square pictures only: give --image_size two equal sides."
            )
        options = {"image_size": image_size[0]}
    elif name.startswith("maxvit") and image_size is not None:
        options = {"input_size": image_size}
    try:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (ValueError, AssertionError) as error:  # a size that is no multiple of its patches
        raise _wrong_size(name, image_size, error) from error
    if published:
        load_published(model, name, without=AUXILIARY)
    return model


def _timm(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    published: bool,
) -> nn.Module:
    # Imported here because it takes a second, which a run without it need not wait for.
    import timm

    timm_name = name.removeprefix("timm/")
    if timm_name == name or not timm.is_model(timm_name):
        known = [*CLASSIFICATION_MODELS, *(f"timm/{known}" for known in timm.list_models())]
        raise unknown_name("classification model", name, known)
    if published and not timm.is_model_pretrained(timm_name):
        raise UserError(f"timm has no published weights for {timm_name}: use --weights none.")
    create = partial(
        timm.create_model,
        timm_name,
        pretrained=published,
        num_classes=num_classes,
        in_chans=in_channels,
    )
    with downloading(f"the weights of {name}") if published else nullcontext():
        if image_size is None:
            return create()
        try:
            return create(img_size=image_size)
        except TypeError:  # a network that isn't built for one size, as most are not
            return create()
        except AssertionError as error:
            raise _wrong_size(name, image_size, error) from error


def _wrong_size(name: str, image_size: tuple[int, int] | None, error: Exception) -> UserError:
    height, width = image_size or USUAL_SIZE
    reason = str(error).partition("\n")[0].strip().rstrip(".")
    return UserError(
        f"{name} can't take an input of {height}x{width} ({reason}): choose another "
        "--image_size or --model."
    )


def _usual_size(name: str) -> tuple[int, int]:
    """(height, width) that a model is tried on if nothing is known of the pictures."""
    if name == "lenet":
        return 28, 28
    if not name.startswith("timm/"):
        return USUAL_SIZE
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    return tuple(config.input_size[1:]) if config else USUAL_SIZE
