"""What is written of a segmentation: masks of ids, run lengths, coloured pictures."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from figures.canvas import GAP, stack
from figures.sheet import color_key
from inference.inputs import Input
from inference.task_output import TaskOutput, at_drawing_size, drawing_size, write_ids
from tasks.detection.instance_masks import encode
from tasks.segmentation.inference import SegmentationResult
from tasks.segmentation.metrics import confusion, segmentation_metrics

ROWS = 1024  # of a mask that are compared at a time
OPACITY = 0.5  # of the class colours over the picture


class SegmentationOutput(TaskOutput):
    """A class for every pixel."""

    known = ("pictures", "masks", "rle")
    usual = ("pictures", "masks")

    @property
    def columns(self) -> list[str]:
        """Size, and the share of each class."""
        return ["height", "width", *(f"share of {name}" for name in self.classes)]

    def record(self, result: SegmentationResult) -> dict[str, Any]:
        """Size and shares."""
        return {"size": list(result.mask.shape), "shares": result.shares}

    def judged(self, result: SegmentationResult, truth: Tensor) -> list[list[int]]:
        """The entries of the confusion matrix that are not 0: truth, prediction, pixels."""
        classes = len(self.classes)
        counts = torch.zeros(classes, classes, dtype=torch.int64)
        rows = zip(result.mask.split(ROWS), truth.split(ROWS), strict=True)
        for mine, true in rows:  # what is counted takes several times the memory of the mask
            counts += confusion(mine, true, classes)
        places = counts.nonzero()
        return torch.column_stack([places, counts[places[:, 0], places[:, 1]]]).tolist()

    def score(self, records: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Mean IoU, the IoU of every class that occurs, pixel accuracy."""
        confusion = torch.zeros(len(self.classes), len(self.classes), dtype=torch.float64)
        for record in records:
            for truth, prediction, pixels in record["truth"]:
                confusion[truth, prediction] += pixels
        return segmentation_metrics(confusion, self.classes)

    def together(self, frames: Iterator[dict[str, Any]], count: int) -> dict[str, Any]:
        """Size, and the mean shares."""
        size, total = [], Counter()
        for record in frames:
            size = record["size"]
            total.update(record["shares"])
        shares = {name: share / count for name, share in total.most_common()}
        return {"size": size, "shares": shares}

    def row(self, record: dict[str, Any]) -> list[Any]:
        """Size, and the share of each class."""
        shares = (record["shares"].get(name, 0) for name in self.classes)
        return [*record["size"], *(f"{share:.6f}" for share in shares)]

    def draw(self, media: Tensor, result: SegmentationResult) -> Tensor:
        """The picture in the colours of its classes, over the names of those that occur."""
        return self._drawn(media, result, result.names)

    def draw_frame(self, media: Tensor, result: SegmentationResult) -> Tensor:
        """The same over the names of all classes, so that the next frame is as high."""
        return self._drawn(media, result, self.classes)

    def _drawn(self, media: Tensor, result: SegmentationResult, names: Sequence[str]) -> Tensor:
        size = drawing_size(*media.shape[-2:])
        mask = result.mask[None]
        if tuple(mask.shape[1:]) != size:
            mask = F.resize_image(mask, list(size), F.InterpolationMode.NEAREST_EXACT)
        colors = torch.tensor(self.colors, dtype=torch.uint8)[mask[0].long()].permute(2, 0, 1)
        drawn = torch.lerp(at_drawing_size(media).cpu().float(), colors.float(), OPACITY)
        named = [(name, self.colors[self.classes.index(name)]) for name in names]
        key = color_key(named, drawn.shape[2])
        return stack([drawn.round().to(torch.uint8), key], GAP)

    def write(self, each: Input, media: Tensor | None, result: SegmentationResult) -> None:
        """The mask, its run lengths, the annotated picture."""
        super().write(each, media, result)
        if "masks" in self.saved:
            write_ids(self.file("masks", each, ".png"), result.mask, self.colors)
        if "rle" in self.saved:
            present = result.mask.unique().tolist()
            lengths = {self.classes[i]: encode((result.mask == i).numpy()) for i in present}
            self.file("rle", each, ".json").write_text(json.dumps(lengths))
