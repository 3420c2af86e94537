"""Detections as data sets in COCO's, YOLO's and VOC's layout, to be corrected and trained on.

The pictures are copied beside the annotations. Both splits hold all of them: dividing them is left
to whoever corrects them.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml
from torch import Tensor
from torchvision.io import encode_png, write_file

from data.folders import IMAGE_SUFFIXES
from inference.inputs import Input
from tasks.detection.inference import DetectionResult

SPLITS = ("train", "val")


class DataSetFolder(ABC):
    """A data set that grows by one picture at a time.

    Args:
        path: its folder.
        classes: name of each class.

    Attributes:
        images: the folder of the pictures in it.
    """

    images: str

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path, self.classes = path, list(classes)

    def add(self, each: Input, media: Tensor, result: DetectionResult) -> None:
        """Copy a picture; a subclass writes its objects."""
        place = self.path / self.images / picture_name(each)
        place.parent.mkdir(parents=True, exist_ok=True)
        if _is_copied(each):
            shutil.copyfile(each.path, place)
        else:
            write_file(str(place), encode_png(media.contiguous().cpu(), 3))

    @abstractmethod
    def conclude(self, records: list[dict[str, Any]], score: float) -> None:
        """Write the files about all pictures.

        Args:
            records: the lines of the pictures that succeeded, each with its ``picture``.
            score: the lowest of an object that is written.
        """


def picture_name(each: Input) -> str:
    """The file of an input below a data set's folder of pictures: its own kind, or PNG."""
    return each.out + (Path(each.path).suffix.lower() if _is_copied(each) else ".png")


def _is_copied(each: Input) -> bool:
    return each.path is not None and Path(each.path).suffix.lower() in IMAGE_SUFFIXES


class YoloFolder(DataSetFolder):
    """data.yaml, images/ and labels/ with a line ``class cx cy w h`` per object."""

    images = "images"

    def add(self, each: Input, media: Tensor, result: DetectionResult) -> None:
        """Copy a picture and write its labels."""
        super().add(each, media, result)
        height, width = result.size
        lines = []
        for label, box in zip(result.labels.tolist(), result.boxes.tolist(), strict=True):
            x0, y0, x1, y1 = box
            shares = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
            shares += (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(label), *(f"{share:.8f}" for share in shares)]) + "\n")
        place = self.path / "labels" / f"{each.out}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(lines))

    def conclude(self, records: list[dict[str, Any]], score: float) -> None:
        """Write data.yaml."""
        content = {"train": "images", "val": "images", "names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.path / "data.yaml").write_text(text, encoding="utf-8")


class VocFolder(DataSetFolder):
    """JPEGImages/, Annotations/ and ImageSets/Main/."""

    images = "JPEGImages"

    def add(self, each: Input, media: Tensor, result: DetectionResult) -> None:
        """Copy a picture and write its XML."""
        super().add(each, media, result)
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(each.out).name
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", result.size[1]), ("height", result.size[0]), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
        for name, box in zip(result.names, result.boxes.tolist(), strict=True):
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = name
            ElementTree.SubElement(entry, "difficult").text = "0"
            corners = ElementTree.SubElement(entry, "bndbox")
            x0, y0, x1, y1 = box
            # VOC counts pixels from 1, and the last ones are part of the box.
            places = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            for corner, value in places.items():
                ElementTree.SubElement(corners, corner).text = f"{value:.4f}"
        place = self.path / "Annotations" / f"{each.out}.xml"
        place.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(place, encoding="utf-8")

    def conclude(self, records: list[dict[str, Any]], score: float) -> None:
        """Write the lists of the splits."""
        lists = self.path / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            names = (f"{record['out']}\n" for record in records)
            (lists / f"{split}.txt").write_text("".join(names), encoding="utf-8")


class CocoFolder(DataSetFolder):
    """annotations/instances_*.json and images/, and detections.json, COCO's list of results."""

    images = "images"

    def conclude(self, records: list[dict[str, Any]], score: float) -> None:
        """Write all annotations, and every detection as results."""
        images, annotations, results = [], [], []
        for number, record in enumerate(records, start=1):
            height, width = record["size"]
            name = record["picture"]
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for each in record["objects"]:
                x0, y0, x1, y1 = each["box"]
                found = {
                    "image_id": number,
                    "category_id": each["label"] + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": each["score"],
                }
                if "rle" in each:
                    found["segmentation"] = each["rle"]
                results.append(found)
                if each["score"] >= score:
                    area = (x1 - x0) * (y1 - y0)
                    own = {"id": len(annotations) + 1, "iscrowd": 0, "area": area}
                    annotations.append(own | found)
        categories = [{"id": n, "name": name} for n, name in enumerate(self.classes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        folder = self.path / "annotations"
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            (folder / f"instances_{split}.json").write_text(json.dumps(content))
        (self.path / "detections.json").write_text(json.dumps(results))
