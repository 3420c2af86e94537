"""What is written of a class: a table of the most probable ones, a curve over a video's time."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from figures.canvas import FONT, INK, framed, shortened, stack, text_line
from inference.curves import Curve, curve_figure, write_curve
from inference.inputs import Input
from inference.options import PredictOptions
from inference.task_output import TaskOutput, at_drawing_size
from inference.trained import Trained
from tasks.classification.inference import ClassificationResult
from tasks.classification.metrics import TOP, ClassCounts, class_metrics
from tasks.video.figures import film_strip


class ClassificationOutput(TaskOutput):
    """The class of a picture."""

    known: tuple[str, ...] = ("pictures",)
    usual: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The most probable classes, each with its probability."""
        numbers = range(1, min(self.options.top, len(self.classes)) + 1)
        return [name for n in numbers for name in (f"class {n}", f"probability {n}")]

    def record(self, result: ClassificationResult) -> dict[str, Any]:
        """The most probable classes, best first."""
        return {"top": result.top(self.options.top)}

    def judged(self, result: ClassificationResult, truth: int) -> dict[str, Any]:
        """The label, the predicted one, whether it is among five, and the loss."""
        counts = ClassCounts(len(self.classes), torch.device("cpu"))
        counts.add(result.probabilities[None], torch.tensor([truth]))
        top5, loss = (counts.sums[name].item() for name in ("top5", "loss"))
        return {"label": truth, "predicted": result.label, "top5": top5, "loss": loss}

    def score(self, records: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Top-1, top-5 with more than five classes, mean recall of the classes, loss."""
        sums = ClassCounts(len(self.classes), torch.device("cpu")).sums
        for truth in (record["truth"] for record in records):
            sums["confusion"][truth["label"], truth["predicted"]] += 1
            sums["top5"] += truth["top5"]
            sums["loss"] += truth["loss"]
        return class_metrics(sums, self.classes)

    def together(self, frames: Iterator[dict[str, Any]], count: int) -> dict[str, Any]:
        """The mean probabilities; of a frame's classes those beyond --top count as 0."""
        total = Counter()
        for record in frames:
            total.update(dict(record["top"]))
        top = total.most_common(self.options.top)
        return {"top": [(name, share / count) for name, share in top]}

    def row(self, record: dict[str, Any]) -> list[Any]:
        """The most probable classes, each with its probability."""
        return [cell for name, share in record["top"] for cell in (name, f"{share:.6f}")]

    def draw(self, media: Tensor, result: ClassificationResult) -> Tensor:
        """The picture over its most probable classes."""
        picture = at_drawing_size(media).cpu()
        return framed(stack([picture, *self._captions(result, picture.shape[2])]))

    def _captions(self, result: ClassificationResult, width: int) -> list[Tensor]:
        lines = []
        for name, share in result.top(min(self.options.top, TOP)):
            percent = f"{100 * share:5.1f} %  "
            name = shortened(name, max(80, width - FONT.getlength(percent)))
            lines.append(text_line((percent + name, INK)))
        return lines


class VideoOutput(ClassificationOutput):
    """The class of a video, and of clips slid over it."""

    known = ("pictures", "curves")
    usual = ("curves",)

    def __init__(self, model: Trained, options: PredictOptions, path: Path) -> None:
        super().__init__(model, options, path)
        if "curves" in options.save and not options.every:
            raise UserError("--save curves draws clips slid over a video: give --every too.")

    @property
    def needs_media(self) -> bool:
        """A clip, for the film strip."""
        return "pictures" in self.saved

    def draw(self, media: Tensor, result: ClassificationResult) -> Tensor:
        """Frames of the middle clip over the most probable classes."""
        return framed(film_strip(media, None, result.name, result.score))

    def record(self, result: ClassificationResult | Curve) -> dict[str, Any]:
        """The most probable classes; of a curve those of its mean, and when which is on top."""
        if isinstance(result, Curve):
            return super().record(result.mean) | {"parts": result.parts()}
        return super().record(result)

    def judged(self, result: ClassificationResult | Curve, truth: int) -> dict[str, Any]:
        """As of a picture; of a curve its mean counts."""
        return super().judged(result.mean if isinstance(result, Curve) else result, truth)

    def write(
        self, each: Input, media: Tensor | None, result: ClassificationResult | Curve
    ) -> None:
        """The film strip, and the curve as a table and a figure."""
        if not isinstance(result, Curve):
            super().write(each, media, result)
            return
        if "curves" in self.saved:
            write_curve(self.file("curves", each, ".csv"), result)
            figure = curve_figure(result, self.colors)
            self.write_picture("curves", Input(each.name, each.out, "x.png", "image"), figure)
