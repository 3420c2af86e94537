"""A data set as the input of predict.py, with the truth of every sample."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from engine.about import different_classes
from errors import UserError
from inference.options import PredictOptions, named_values
from inference.sources import Input, out_names
from inference.tasks import with_options
from inference.trained import Trained

# Sources whose class ids follow from names, so that they can be put into the model's order.
BY_NAME = {"detection": ("coco", "voc")}


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
        more = named_values(options.data_options, "data_options")
        if options.dataset in BY_NAME.get(task, ()):
            own["class_names"] = about.classes
        given = with_options(task, about.options | own | more)
        for name in more:
            if not hasattr(given, name):
                raise UserError(f"train_{task}.py has no option {name}; check --data_options.")
        given.check()
        data = importlib.import_module(f"tasks.{task}.sources").load_data(given)
        if data.classes != about.classes:
            raise UserError(different_classes(options.dataset, data.classes, about.classes))
        self.notes = list(data.notes)
        self.reader = _reader(task, getattr(data, options.split), data, given)
        self.is_video = model.inference.media == "video"
        names = unique([self.reader.name(number) for number in range(len(self.reader))])
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


def _reader(task: str, rows: Any, data: Any, options: Any) -> Any:
    reader = importlib.import_module(f"tasks.{task}.dataset").Reader
    if task == "segmentation":
        return reader(rows, data.rule)
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
