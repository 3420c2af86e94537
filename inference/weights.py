"""From predict.py's options to a model."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.class_files import read_class_file, read_class_names
from data.class_lists import class_list
from data.masks import default_colors
from data.tiles import Tiles
from engine.about import About
from errors import UserError
from inference.options import PredictOptions
from inference.tasks import inference_class, option_values, with_options
from inference.trained import Trained, load_trained, says_what_it_is
from models.find_weights import find_weights


def load_model(options: PredictOptions, accelerator: Accelerator) -> Trained:
    """The model that the options name, on this process's device.

    Raises:
        UserError: see ``load_trained``; or options that the weights have no use for.
    """
    precision = options.precision or accelerator.mixed_precision
    given = _given(options)
    model = load_trained(options.weights, accelerator.device, precision, given)
    if options.compile:
        model.network.compile(dynamic=False)
    model.inference.at_once = options.batch_size
    _use_tiles(model, options.tile, options.overlap)
    model.use_tta(options.tta)
    return model


def _use_tiles(model: Trained, side: int | None, overlap: float | None) -> None:
    """Look at pictures in tiles as the options say; None is what evaluation did."""
    own = model.inference.tiles or Tiles(0, 0.25)
    side = own.side if side is None else side
    if overlap is not None and not side:
        raise UserError("--overlap is for tiles, and there are none: give --tile too.")
    model.use_tiles(side, own.overlap if overlap is None else overlap)


def _given(options: PredictOptions) -> About | None:
    """What the user says of weights that don't say it themselves."""
    said = {"--task": options.task, "--model": options.model, "--class_names": options.class_names}
    if not any(said.values()) and not options.model_options:
        return None
    if says_what_it_is(find_weights(options.weights)):
        raise UserError(
            f"{options.weights} says itself what it is: leave out {', '.join(said)} and "
            "--model_options."
        )
    if missing := [name for name, value in said.items() if not value]:
        raise UserError(f"Give {' and '.join(missing)} too: {', '.join(said)} go together.")
    names: Any = options.class_names
    if isinstance(names, str):
        names = _listed(names, options.task)
    said_of = {*inference_class(options.task).saved} - {"model"}
    values = option_values(
        options.task, options.model_options, "model_options", lambda option: option.name in said_of
    )
    values["model"] = options.model
    with_options(options.task, values).check()
    colors = default_colors(len(names) + 1)[1:]
    return About(options.task, values, list(names), colors, {})


def _listed(names: str, task: str) -> list[str]:
    """The classes that a text or a file lists, as training with that file has them."""
    if not Path(names).is_file():
        return names.split(",")
    if task == "segmentation":
        return class_list(*read_class_file(Path(names))).names
    return list(read_class_names(Path(names)).values())
