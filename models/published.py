"""What --weights means to a classifier, and the weights that torchvision publishes."""

import torchvision
from torch import nn

from errors import UserError
from models.weights import downloading, load_matching, logger


def wants_published(weights: str, name: str, own: bool, example: str) -> bool:
    """Whether `weights` asks for the published weights of the classifier `name`.

    Args:
        weights: none, default or the path of a file.
        name: the model.
        own: whether it is one of the project's own, for which nothing is published.
        example: a model that has published weights, for the message.

    Raises:
        UserError: they are asked for and there are none, or only a backbone's are.
    """
    if weights == "backbone":
        raise UserError(
            "--weights backbone is for segmentation and detection: --weights default loads the "
            "trained network, of which a head of other classes stays random."
        )
    if weights == "default" and own:
        raise UserError(
            f"{name} has no published weights: leave --weights at none, pass the path of a file, "
            f"or choose a model that has some, such as --model {example}."
        )
    return weights == "default"


def load_published(model: nn.Module, name: str, without: tuple[str, ...] = ()) -> None:
    """Load torchvision's best weights of `name` and log what doesn't fit, e.g. its head.

    Args:
        model: built by torchvision.
        name: its name there.
        without: beginnings of the names of tensors that the model has no use for.

    Raises:
        UserError: they can't be fetched.
    """
    found = torchvision.models.get_model_weights(name).DEFAULT
    with downloading(f"the weights of {name}"):
        state = found.get_state_dict(progress=False, check_hash=True)
    state = {key: value for key, value in state.items() if not key.startswith(without)}
    if report := load_matching(model, state, f"{name}'s {found.name}"):
        logger.warning(report)
