"""What is written of detected objects: pictures with boxes, data sets to correct and train on."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from inference.data_sets import CocoFolder, VocFolder, YoloFolder, picture_name
from inference.inputs import Input
from inference.task_output import TaskOutput, at_drawing_size
from tasks.detection.figures import draw_objects
from tasks.detection.inference import DetectionResult
from tasks.detection.metrics import average_precision
from tasks.detection.records import Records

FOLDERS = {"coco": CocoFolder, "yolo": YoloFolder, "voc": VocFolder}


class DetectionOutput(TaskOutput):
    """The objects of a picture."""

    known = ("pictures", *FOLDERS)
    usual = ("pictures",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.folders = [
            FOLDERS[name](self.path / name, self.classes) for name in self.saved if name in FOLDERS
        ]

    @property
    def needs_media(self) -> bool:
        """For pictures, and for data sets, which hold them."""
        return super().needs_media or bool(self.folders)

    @property
    def columns(self) -> list[str]:
        """The number of objects of at least --score, of all classes and of each."""
        return ["height", "width", "objects", *self.classes]

    def record(self, result: DetectionResult) -> dict[str, Any]:
        """Every object, weak ones too."""
        columns = (result.boxes, result.scores.double(), result.labels)
        objects = [
            {"label": label, "name": self.classes[label], "score": score, "box": box}
            for box, score, label in zip(*(column.tolist() for column in columns), strict=True)
        ]
        for entry, rle in zip(objects, result.rles or [], strict=False):
            entry["rle"] = rle
        return {"size": list(result.size), "objects": objects}

    def judged(self, result: DetectionResult, truth: dict[str, Any]) -> dict[str, Any]:
        """The truth."""
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in truth.items()}

    def score(self, records: Iterator[dict[str, Any]]) -> dict[str, float]:
        """COCO's average precision and recall, also per class and of masks."""
        found = [image_record(number, record) for number, record in enumerate(records)]
        precision = average_precision(found, self.classes)
        masks = {}
        if found and "rles" in found[0].found:
            of_masks = average_precision(found, self.classes, "segm").metrics
            masks = {f"mask_{name}": value for name, value in of_masks.items()}
        return {
            **precision.metrics,
            **masks,
            **{f"ap/{name}": value for name, value in precision.ap_per_class.items()},
            **{f"ap50/{name}": value for name, value in precision.ap50_per_class.items()},
        }

    def together(self, frames: Iterator[dict[str, Any]], count: int) -> dict[str, Any]:
        """Size, and the number of objects of each class in all frames, as --score counts them."""
        size, counts = [], Counter()
        for record in frames:
            size = record["size"]
            counts += self._counts(record)
        return {"size": size, "counts": counts}

    def _counts(self, record: dict[str, Any]) -> Counter:
        sure = (each for each in record["objects"] if each["score"] >= self.options.score)
        return Counter(each["name"] for each in sure)

    def row(self, record: dict[str, Any]) -> list[Any]:
        """Size and numbers of objects."""
        counts = record["counts"] if "frames" in record else self._counts(record)
        found = [counts.get(name, 0) for name in self.classes]
        return [*record["size"], sum(found), *found]

    def draw(self, media: Tensor, result: DetectionResult) -> Tensor:
        """The picture with the objects of at least --score."""
        picture = at_drawing_size(media).cpu()
        factor = picture.shape[2] / media.shape[2]
        found = result.best(self.options.score).to_draw()
        return draw_objects(picture, found, self.classes, self.colors, factor)

    def files_of(self, each: Input) -> dict[str, Any]:
        """The picture in a data set."""
        return {"picture": picture_name(each)} if self.folders else {}

    def write(self, each: Input, media: Tensor | None, result: DetectionResult) -> None:
        """The annotated picture, and its part of every data set."""
        super().write(each, media, result)
        for folder in self.folders:
            folder.add(each, media, result.best(self.options.score))

    def conclude(self, records: Iterator[dict[str, Any]]) -> None:
        """The files about whole data sets."""
        if self.folders:
            known = [record for record in records if "frames" not in record]
            for folder in self.folders:
                folder.conclude(known, self.options.score)


def image_record(number: int, record: dict[str, Any]) -> Records:
    """A line of predictions.jsonl for ``average_precision``."""
    objects, truth = record["objects"], record["truth"]
    boxes = np.array([each["box"] for each in objects], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    found = {
        "boxes": boxes,
        "scores": np.array([each["score"] for each in objects]),
        "labels": np.array([each["label"] for each in objects], dtype=np.int64),
    }
    if "rles" in truth:
        found["rles"] = [each["rle"] for each in objects]
    return Records.of_image(number, tuple(record["size"]), truth, found)
