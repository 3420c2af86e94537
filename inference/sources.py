"""What predict.py predicts on: files that ``--input`` names, or a data set."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from accelerate import Accelerator

from engine.collectives import from_main_process
from errors import UserError
from inference.files import FileSource
from inference.inputs import Input
from inference.options import PredictOptions
from inference.rows import DatasetSource
from inference.trained import Trained


class Source(Protocol):
    """Inputs, and what opens them.

    Attributes:
        inputs: in the order of the tables.
        notes: sentences about choices made here that a user should see.
        is_scored: whether each input comes with its truth.
    """

    inputs: list[Input]
    notes: list[str]
    is_scored: bool

    def open(self, number: int) -> AbstractContextManager[tuple[Any, Any]]:
        """The picture uint8 (3, H, W) or the open video of an input, and its truth or None."""


def find_source(options: PredictOptions, model: Trained, accelerator: Accelerator) -> Source:
    """What the options name; files are looked for by the main process alone (a collective).

    Standard input can be read once only, and folders may change.

    Raises:
        UserError: there is nothing, or nothing that the model can take.
    """
    if options.dataset:
        source = DatasetSource(options, model)
    else:
        source = None
        if accelerator.is_main_process:
            inference = model.inference
            large = inference.tiles_as_stored
            source = FileSource(options.input, inference.media, options.output, large)
        source = from_main_process(source)
    framewise = model.inference.media == "image" and any(e.kind != "image" for e in source.inputs)
    if options.max_frames and not framewise:
        raise UserError(
            "--max_frames is for videos that are predicted frame by frame, and there is none: "
            "leave it out."
        )
    return source
