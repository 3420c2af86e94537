"""What torchvision and timm publish: weights, and the pixel scaling that they were trained with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torchvision
from torch import nn

from data.pixels import IMAGENET, PixelScaling
from errors import UserError, unknown_name
from models.weights import load_matching


def pixel_scaling(name: str) -> PixelScaling:
    """The scaling of pixels with which a classifier or a timm backbone was trained.

    ImageNet's for most, and for networks without published weights, to which it makes no
    difference.

    Args:
        name: a name in torchvision's list of models, ``timm/<name>``, or any other.
    """
    if name.startswith("timm/"):
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        return PixelScaling(tuple(config.mean), tuple(config.std)) if config else IMAGENET
    for module in (torchvision.models, torchvision.models.video):
        if name in torchvision.models.list_models(module=module):
            preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
            return PixelScaling(tuple(preset.mean), tuple(preset.std))
    return IMAGENET


def find_in_timm(kind: str, name: str, others: Sequence[str], *, pretrained: bool) -> str:
    """timm's own name of the network ``timm/<name>``.

    Args:
        kind: what messages call such a network.
        name: ``timm/<name>``; every other name is unknown.
        others: names outside timm that messages may suggest.
        pretrained: whether its published weights are wanted.

    Raises:
        UserError: timm has no such network, or no weights for it.
    """
    # Imported here because it takes a second, which a run without it need not wait for.
    import timm

    timm_name = name.removeprefix("timm/")
    if timm_name == name or not timm.is_model(timm_name):
        raise unknown_name(
            kind, name, [*others, *(f"timm/{known}" for known in timm.list_models())]
        )
    if pretrained and not timm.is_model_pretrained(timm_name):
        raise nothing_published(name, "a network of timm's that has some")
    return timm_name


def nothing_published(name: str, instead: str) -> UserError:
    """The error, for the caller to raise, that nobody publishes weights for a model.

    Args:
        name: the model.
        instead: what to choose to get published weights, the end of the message.
    """
    return UserError(
        f'{name} has no published weights: use weights="none" or the path of a file, or choose '
        f"{instead}."
    )


def wants_published(weights: str, name: str, own: Sequence[str], example: str) -> bool:
    """Whether ``weights`` asks for the published weights of the classifier ``name``.

    Args:
        weights: "none", "default" or the path of a file.
        name: the model.
        own: the project's own models, for which nothing is published.
        example: a model that has published weights, for the message.

    Raises:
        UserError: published weights are asked for and there are none, or only a backbone's.
    """
    if weights == "backbone":
        raise UserError(
            'weights="backbone" is for segmentation and detection: weights="default" loads the '
            "trained classifier, with a random head where the classes are others."
        )
    if weights == "default" and name in own:
        raise nothing_published(name, f"a model that has some, such as {example}")
    return weights == "default"


def load_published(model: nn.Module, name: str, without: tuple[str, ...] = ()) -> None:
    """Load torchvision's best weights of ``name`` and log what doesn't fit, such as its head.

    Args:
        model: built by torchvision.
        name: its name there.
        without: beginnings of the names of tensors that the model has no use for.

    Raises:
        UserError: the weights can't be fetched.
    """
    found = torchvision.models.get_model_weights(name).DEFAULT
    with downloading(f"the weights of {name}"):
        state = found.get_state_dict(progress=False, check_hash=True)
    state = {key: value for key, value in state.items() if not key.startswith(without)}
    load_matching(model, state, f"{name}'s {found.name}")


@contextmanager
def downloading(what: str) -> Iterator[None]:
    """Turn a failed download of ``what`` into an error that says what to do without a network.

    Raises:
        UserError: the download failed.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"Can't fetch {what} ({reason}): check the network, or bring the file from a machine "
            'that has one and pass its path as weights, or train from scratch with weights="none".'
        ) from error
