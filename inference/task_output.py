"""What a task writes of its results; each has a subclass in a file of its own."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png, write_file
from torchvision.transforms.v2 import functional as F

from data.on_disk import PictureOnDisk
from errors import UserError
from inference.inputs import Input
from inference.options import PredictOptions
from inference.trained import Trained

LARGEST = 4096  # pixels of the longer side of an annotated picture
SMALLEST = 320  # smaller pictures are enlarged for their annotations
QUALITY = 92
# Options that do nothing for the other tasks.
FOR_TASKS = {
    "every": ("video",),
    "top": ("classification", "video"),
    "score": ("detection",),
}
LOSSLESS = (".png", ".gif", ".bmp", ".tif", ".tiff")


class TaskOutput(ABC):
    """What is written of a task's results.

    Args:
        model: what predicts.
        options: save, score and top.
        path: the output folder.

    Attributes:
        known: what ``--save`` may name.
        usual: what is saved without it.
        columns: of the table, after those of every task.

    Raises:
        UserError: ``--save`` asks for what the task doesn't have.
    """

    known: ClassVar[tuple[str, ...]]
    usual: ClassVar[tuple[str, ...]]
    columns: list[str]

    def __init__(self, model: Trained, options: PredictOptions, path: Path) -> None:
        self.model, self.options, self.path = model, options, path
        self.classes, self.colors = model.classes, model.inference.colors
        task = model.about.task
        for name, tasks in FOR_TASKS.items():
            if task not in tasks and getattr(options, name) != getattr(PredictOptions, name):
                raise UserError(f"--{name} is for {' and '.join(tasks)}, and not for {task}.")
        self.saved = tuple(options.save) or self.usual
        for name in self.saved:
            if name not in self.known:
                raise UserError(f"--save {name} is not for {task}; it has {', '.join(self.known)}.")

    @property
    def needs_media(self) -> bool:
        """Whether the picture itself, or the clip, is needed to write."""
        return "pictures" in self.saved

    @abstractmethod
    def record(self, result: Any) -> dict[str, Any]:
        """A result as JSON values."""

    @abstractmethod
    def judged(self, result: Any, truth: Any) -> Any:
        """What ``score`` needs to know of an input and its truth, as JSON values."""

    @abstractmethod
    def score(self, records: Iterator[dict[str, Any]]) -> dict[str, float]:
        """The metrics over all inputs, as in training."""

    @abstractmethod
    def together(self, frames: Iterator[dict[str, Any]], count: int) -> dict[str, Any]:
        """The records of a video's frames as one, without their details."""

    @abstractmethod
    def row(self, record: dict[str, Any]) -> list[Any]:
        """A line of the table."""

    @abstractmethod
    def draw(self, media: Tensor, result: Any) -> Tensor:
        """The annotated picture: uint8 (3, H, W)."""

    def draw_frame(self, media: Tensor, result: Any) -> Tensor:
        """The same of a video's frame: of one size for frames of one size."""
        return self.draw(media, result)

    def files_of(self, each: Input) -> dict[str, Any]:
        """What the line of an input says of its files, for ``conclude``."""
        return {}

    def write(self, each: Input, media: Tensor | None, result: Any) -> None:
        """Write the files of one input."""
        if "pictures" in self.saved and media is not None:
            self.write_picture("pictures", each, self.draw(media, result))

    def conclude(self, records: Iterator[dict[str, Any]]) -> None:  # noqa: B027 - most have none
        """Write the files about all inputs; ``records`` are those that succeeded."""

    def file(self, folder: str, each: Input, suffix: str) -> Path:
        """The place of a file of an input, in a folder that is there."""
        path = self.path / folder / f"{each.out}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_picture(self, folder: str, each: Input, picture: Tensor) -> Path:
        """Write a picture: JPEG, or PNG where the input was of a lossless kind."""
        lossless = Path(each.path or each.name).suffix.lower() in LOSSLESS
        path = self.file(folder, each, ".png" if lossless else ".jpg")
        picture = picture.contiguous().cpu()
        write_file(str(path), encode_png(picture, 3) if lossless else encode_jpeg(picture, QUALITY))
        return path


def task_output(model: Trained, options: PredictOptions, path: Path) -> TaskOutput:
    """What a model's task writes."""
    module, name = {
        "segmentation": ("segmentation", "SegmentationOutput"),
        "detection": ("detection", "DetectionOutput"),
        "classification": ("classification", "ClassificationOutput"),
        "video": ("classification", "VideoOutput"),
    }[model.about.task]
    return getattr(importlib.import_module(f"inference.{module}"), name)(model, options, path)


def drawing_size(height: int, width: int) -> tuple[int, int]:
    """The size at which annotations of a picture can be read."""
    longer = max(height, width)
    factor = max(1, round(SMALLEST / longer)) if longer < SMALLEST else min(1, LARGEST / longer)
    return max(1, round(height * factor)), max(1, round(width * factor))


def at_drawing_size(picture: Tensor | PictureOnDisk) -> Tensor:
    """A picture (3, H, W) at the size at which its annotations can be read."""
    size = drawing_size(*picture.shape[-2:])
    if size == tuple(picture.shape[-2:]) and isinstance(picture, Tensor):
        return picture
    stride = max(1, max(picture.shape[-2:]) // (2 * LARGEST))
    if isinstance(picture, PictureOnDisk):
        picture = picture.thinned(stride)
    else:
        picture = picture[:, ::stride, ::stride]  # so that resizing copies no huge picture
    enlarged = size[0] > picture.shape[-2] or size[1] > picture.shape[-1]
    mode = F.InterpolationMode.NEAREST_EXACT if enlarged else F.InterpolationMode.BILINEAR
    return F.resize(picture, list(size), mode, antialias=True)


def write_ids(path: Path, mask: Tensor, colors: list[tuple[int, int, int]]) -> None:
    """Write class ids as a PNG whose palette has the classes' colours.

    Args:
        path: of the file.
        mask: uint8 (H, W).
        colors: RGB of each class.
    """
    height, width = mask.shape
    # Of the same memory: a large mask isn't copied.
    image = Image.frombuffer("P", (width, height), mask.contiguous().numpy(), "raw", "P", 0, 1)
    image.putpalette([channel for color in colors for channel in color])
    image.save(path)
