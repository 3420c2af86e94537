"""What a file of trained weights says about itself: plain JSON in the header of its safetensors.

Nothing here imports torch, so that options can be read from such a file before the slow imports.
"""

import importlib.metadata
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from errors import UserError

KEY = "trained"  # the header's entry
FORMAT = 2
PACKAGES = ("torch", "torchvision", "timm", "accelerate")
# Options of the data that don't say which samples validate, nor how they are read.
NO_MATTER = ("limit_train", "limit_val", "balance_classes")
HOLD_OUT = ("val_share", "fold")  # two ways to say the same
LARGEST_HEADER = 100 * 2**20  # safetensors' own limit


@dataclass(frozen=True)
class About:
    """All that using trained weights takes, beside the weights.

    Attributes:
        task: "segmentation", "detection", "video" or "classification".
        options: the training script's options that the network and its evaluation depend on, by
            name: the model, its size, what was done to pictures. None is a path.
        classes: names of the class ids 0..n-1.
        colors: an RGB triple per class, to draw it in.
        scaling: "mean" and "std" of red, green and blue for values from 0 to 1, before the network.
        norm: "group_norm" or "frozen_bn" where training exchanged BatchNorm for it, else "bn".
        norm_eps: layers of normalisation with another epsilon than 1e-5, by the epsilon as text;
            None for those that the network is built with.
        step: optimizer steps that made the weights.
        metrics: of their evaluation, by name.
        versions: of the packages in use.
        data: which samples validated, and how they were read: the options of the data set, and its
            kind as ``dataset``. None is a path.
    """

    task: str
    options: dict[str, Any]
    classes: list[str]
    colors: list[tuple[int, int, int]]
    scaling: dict[str, list[float]]
    norm: str = "bn"
    norm_eps: dict[str, list[str]] | None = None
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def to_header(self) -> dict[str, str]:
        """The header's entries; safetensors takes texts only."""
        return {"format": "pt", KEY: json.dumps({"version": FORMAT, **asdict(self)})}


def versions() -> dict[str, str]:
    """The versions of the packages that networks and their evaluation come from."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def data_of(options: Any) -> dict[str, Any]:
    """``About.data`` of a training script's options.

    These are the options of data that a resumed run must keep; paths may change.
    """
    kept = [
        each.name
        for each in fields(options)
        if each.metadata["group"] == "data" and each.metadata["resume"] == "same"
    ]
    values = {name: getattr(options, name) for name in kept if name not in NO_MATTER}
    return values | {"dataset": options.dataset.partition(":")[0]}


def data_as_in_training(
    about: About, dataset: str, usual: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of data of the same kind as the weights' own that differ from the defaults.

    So the samples that were held out of training are scored, and read as training's evaluation did.
    Data sets of the hub differ in their columns: of them only what was held out is taken.

    Args:
        about: of the weights.
        dataset: what is scored on.
        usual: the training script's defaults by name.
        said: options that the user gives himself, which aren't taken. Of those that say how much is
            held out, one stands for both, and None for no holding out at all.
    """
    kind = dataset.partition(":")[0]
    if about.data.get("dataset") != kind:
        return {}
    given = {"dataset", *said}
    if how_much := [said[name] for name in HOLD_OUT if name in said]:
        given |= {*HOLD_OUT, *(() if any(how_much) else ("val_group",))}
    return {
        name: value
        for name, value in about.data.items()
        if name in usual
        and name not in given
        and value != usual[name]
        and (kind != "hub" or name in (*HOLD_OUT, "val_group"))
    }


def read_about(path: str | Path) -> About | None:
    """What a .safetensors file says about itself, or None where it says nothing.

    Raises:
        UserError: a newer version of the scripts wrote it, or its entry is damaged.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(length)) if length <= LARGEST_HEADER else {}
    except (OSError, ValueError, struct.error):
        return None  # no safetensors: whoever reads its tensors says so
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    return None if text is None else parse_about(text, str(path))


def compare_classes(
    path: str | Path, task: str, classes: list[str], options: Any, say: Callable[[str], None]
) -> None:
    """Look whether a file's class ids mean what those of the data do.

    Args:
        path: of the file.
        task: that is trained or scored.
        classes: of the data.
        options: of the training script, which the data was read with.
        say: gets a sentence where training starts from a head for as many other classes; one for
            another number is left out, which is said where the weights are loaded.

    Raises:
        UserError: the classes differ, and the weights are to be scored.
    """
    about = read_about(path)
    if about is None or about.classes == classes:
        return
    if options.eval_only:
        raise different_classes("the data", classes, about.classes, options, "--class_names")
    if about.task == task and len(about.classes) == len(classes):
        say(
            f"The classes of the data are not those of {path} "
            f"({_difference(classes, about.classes)}): its head, which has the same shape, is kept "
            "to start from."
        )


def different_classes(
    what: str, theirs: list[str], ours: list[str], options: Any, flag: str
) -> UserError:
    """The error for data of other classes than the weights'.

    Args:
        what: the data.
        theirs: its classes.
        ours: those of the weights.
        options: of the training script, which the data was read with.
        flag: that takes the names of the classes, where the data has only an order of them; "" if
            naming them would not help.
    """
    unknown = [name for name in theirs if name not in ours]
    difference = f"which have no {unknown[0]}" if unknown else _difference(theirs, ours)
    named = [each for each in fields(options) if each.name == "class_names"]
    fits = any(options.dataset.partition(":")[0] in each.metadata["datasets"] for each in named)
    advice = f", or give its class names in the weights' order with {flag}" if flag and fits else ""
    return UserError(
        f"The classes of {what} are not those of the weights ({difference}), so the scores would "
        f"mean nothing: take the data that the weights were trained on{advice}."
    )


def _difference(theirs: list[str], ours: list[str]) -> str:
    pairs = zip(theirs, ours, strict=False)
    first = next((f"first {a} instead of {b}" for a, b in pairs if a != b), None)
    return first or f"{len(theirs)}, not {len(ours)}"


def parse_about(text: str, where: str) -> About:
    """The About in a header's entry.

    Args:
        text: the entry.
        where: the file, for messages.

    Raises:
        UserError: a newer version of the scripts wrote it, or it is damaged.
    """
    try:
        values = json.loads(text)
        version = values.pop("version")
        if version <= FORMAT:
            values["colors"] = [tuple(color) for color in values["colors"]]
            return About(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"What {where} says about itself can't be read ({error}): take the file from the run "
            "again."
        ) from None
    raise UserError(
        f"{where} was written by a newer version of these scripts (its description has version "
        f"{version}, known is {FORMAT}): update them."
    )
