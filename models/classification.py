"""The image classifiers by name: ``build_classification_model("resnet18", num_classes=10)``.

The project's own networks, all of torchvision's and all of timm's. Every one maps images
(B, 3, H, W), whose pixels are scaled as ``models.pretrained.pixel_scaling`` says, to logits
(B, num_classes). Auxiliary classifiers are left out.
"""

from contextlib import nullcontext
from functools import partial

import torchvision
from torch import nn

from errors import UserError
from models.dry_run import dry_run
from models.lenet import LeNet
from models.pretrained import downloading, find_in_timm, load_published, wants_published
from models.syncbnnet import SYNCBNNET_SIZES, SyncBNNet
from models.weights import load_weights

OWN_MODELS = (*SYNCBNNET_SIZES, "lenet")
TORCHVISION_MODELS = tuple(torchvision.models.list_models(module=torchvision.models))
CLASSIFICATION_MODELS = (*OWN_MODELS, *TORCHVISION_MODELS)  # and timm/<name>

# Images up to this side are too small to be halved by the stem.
SMALL_IMAGE = 40
USUAL_SIZE = (224, 224)
# These two expect ImageNet's pixel scaling, undo it and apply their own.
OWN_SCALING = ("googlenet", "inception_v3")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # their auxiliary classifiers


def build_classification_model(
    name: str,
    num_classes: int,
    *,
    weights: str = "none",
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """The image classifier called ``name``.

    Args:
        name: one of ``CLASSIFICATION_MODELS``, or ``timm/<name>``.
        num_classes: number of logits.
        weights: "none" (random, by torch's global generator), "default" (trained on ImageNet; a
            head for other classes stays random) or the path of a file; what does not fit is logged.
        image_size: (height, width) of the images that the model will see. SyncBNNet's stem keeps
            small ones at their resolution, and transformers are built for the size.

    Raises:
        UserError: the name is unknown, the model can't take the size, or the weights do not exist
            or can't be fetched.
    """
    published = wants_published(weights, name, OWN_MODELS, "resnet18")
    if name in OWN_MODELS:
        model = _own(name, num_classes, image_size)
    elif name in TORCHVISION_MODELS:
        model = _torchvision(name, num_classes, image_size, published)
    else:
        model = _timm(name, num_classes, image_size, published)
    load_weights(model, weights)
    size = image_size or _usual_size(name)
    dry_run(model, name, (3, *size), "choose another image_size or model")
    return model


def _own(name: str, num_classes: int, image_size: tuple[int, int] | None) -> nn.Module:
    if name == "lenet":
        return LeNet(num_classes)
    small = image_size is not None and max(image_size) <= SMALL_IMAGE
    return SyncBNNet(num_classes, **SYNCBNNET_SIZES[name], stem_stride=1 if small else 2)


def _torchvision(
    name: str, num_classes: int, image_size: tuple[int, int] | None, published: bool
) -> nn.Module:
    options = {}
    if name in OWN_SCALING:
        # Also without published weights: a file of weights must find the network it was saved from.
        options = {"aux_logits": False, "transform_input": True, "init_weights": not published}
    elif name.startswith("vit_") and image_size is not None:
        if image_size[0] != image_size[1]:
            raise UserError(
                f"{name} takes square images only: give image_size two equal sides, or choose "
                "another model."
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
    name: str, num_classes: int, image_size: tuple[int, int] | None, published: bool
) -> nn.Module:
    timm_name = find_in_timm(
        "classification model", name, CLASSIFICATION_MODELS, pretrained=published
    )
    import timm

    create = partial(timm.create_model, timm_name, pretrained=published, num_classes=num_classes)
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
        f"{name} can't take an input of {height}x{width} ({reason}): choose another image_size or "
        "model."
    )


def _usual_size(name: str) -> tuple[int, int]:
    """(height, width) on which a model is tried if the size of the images isn't known."""
    if name == "lenet":
        return 28, 28
    if not name.startswith("timm/"):
        return USUAL_SIZE
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    return tuple(config.input_size[1:]) if config else USUAL_SIZE
