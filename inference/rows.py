"""A data set as the input of predict.py, with the truth of every sample."""

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import Field, replace
from typing import Any

from engine.about import data_as_in_training, different_classes
from errors import UserError
from inference.inputs import Input, out_names, readable
from inference.options import PredictOptions
from inference.tasks import option_values, options_class, with_options
from inference.trained import Trained

# Sources whose class ids follow from names, so that they can be put into the model's order.
BY_NAME = {
    "detection": ("coco", "voc", "csv", "labelme", "datumaro"),
    "segmentation": ("coco", "labelme"),
}

# Options in the group of data that say nothing about samples here, or that are predict.py's own.
NOT_OF_SAMPLES = (
    *("dataset", "data_dir", "num_workers", "check_data", "balance_classes"),
    *("allow_changed_data", "compare_contents"),
)


class DatasetSource:
    """The samples of a split, read as for training.

    Args:
        options: dataset, data_dir, split and data_options.
        model: whose task and classes the data must have.

    Raises:
        UserError: there is no such data set, or its classes are others.
    """

    is_scored = True

    def __init__(self, options: PredictOptions, model: Trained) -> None:
        about, task = model.about, model.about.task
        own = {"dataset": options.dataset, "data_dir": options.data_dir}
        more = option_values(task, options.data_options, "data_options", _is_about_the_data)
        if options.dataset in BY_NAME.get(task, ()):
            own["class_names"] = _names_to_give(task, about.classes)
        usual = vars(options_class(task)())
        taken = data_as_in_training(about, options.dataset, usual, more)
        given = with_options(task, about.options | taken | own | more)
        otherwise = _as_options({name: usual[name] for name in taken})
        hint = f"{_as_options(taken)} as in training; --data_options {otherwise} reads as usual"
        try:
            given.check()
            data = _read(task, given, None if "class_names" in more else own.get("class_names"))
        except UserError as error:
            raise UserError(f"{error} (Read with {hint}.)" if taken else str(error)) from None
        if data.classes != about.classes:
            flag = "--data_options class_names=a,b,..."
            raise different_classes(options.dataset, data.classes, about.classes, given, flag)
        self.notes = [f"Read with {hint}."] * bool(taken) + list(data.notes)
        self.reader = _reader(task, getattr(data, options.split), data, given)
        self.is_video = model.inference.media == "video"
        names = unique([readable(self.reader.name(n)) for n in range(len(self.reader))])
        outs = out_names(names)
        kind = model.inference.media
        self.inputs = [Input(name, out, None, kind) for name, out in zip(names, outs, strict=True)]

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[tuple[Any, Any]]:
        """The picture or the open video of a sample, and its truth.

        Raises:
            SampleError: it can't be used; the message names its file.
        """
        if self.is_video:
            with self.reader.open(number) as sample:
                yield sample, sample.label
        else:
            yield self.reader.read(number)


def _is_about_the_data(option: Field) -> bool:
    if option.name == "seed":  # of drawn samples
        return True
    return option.metadata["group"] == "data" and option.name not in NOT_OF_SAMPLES


def _as_options(values: dict[str, Any]) -> str:
    """As ``--data_options`` takes them."""
    shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def _names_to_give(task: str, classes: list[str]) -> list[str]:
    """The weights' classes as ``--class_names``; outlines may call the background either way."""
    if task != "segmentation":
        return classes
    from tasks.segmentation.outlines import BACKGROUNDS

    return [*BACKGROUNDS, *(name for name in classes if name not in BACKGROUNDS)]


def _read(task: str, options: Any, named: list[str] | None) -> Any:
    """The data set; ``named`` are class names that the options hold and no user gave."""
    load_data = importlib.import_module(f"tasks.{task}.sources").load_data
    try:
        return load_data(options)
    except UserError:
        if named is None:
            raise
    # What is wrong whatever the names is said again here. Else they are, which a user can't mend.
    found = load_data(replace(options, class_names=None))
    raise different_classes(options.dataset, found.classes, named, options, "")


def _reader(task: str, rows: Any, data: Any, options: Any) -> Any:
    reader = importlib.import_module(f"tasks.{task}.dataset").Reader
    if task == "segmentation":
        return reader(rows, data.rule, options.resize_masks)
    if task == "detection":
        return reader(rows, options.has_masks)
    if task == "video":
        return reader(rows, data.open, options.decoder)
    return reader(rows, len(data.classes))


def unique(names: list[str]) -> list[str]:
    """Names, with a number behind those that occur again: samples can share a file."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return distinct
