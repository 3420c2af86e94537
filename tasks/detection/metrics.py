"""COCO's average precision of detections gathered from all processes, by faster-coco-eval.

torchmetrics' MeanAveragePrecision wraps the same evaluator and agrees, but takes masks as pixels
where run lengths do, rounds to float32, and replaces an area of 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

SIZES = ("small", "medium", "large")
LIMITS = (1, 10, 100)  # detections per image that COCO counts
RECALLS = np.linspace(0, 1, 101)  # COCO measures precision at these


@dataclass(frozen=True)
class ImageRecord:
    """What is in an image and what was found in it, in the image's own pixels.

    Attributes:
        index: number of the image in the data set; every image occurs once.
        size: (height, width).
        truth: "boxes" (N, 4) as x, y, width, height, "labels" (N,), "iscrowd" (N,), "area" (N,),
            and with masks "rles": a list of N compressed run lengths.
        boxes: (M, 4) as x, y, width, height.
        scores: (M,).
        labels: (M,).
        rles: with masks, M compressed run lengths.
    """

    index: int
    size: tuple[int, int]
    truth: dict[str, Any]
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: list[dict] | None = None


@dataclass(frozen=True)
class Precision:
    """COCO's scores, from 0 to 1; scores of objects that don't occur are left out.

    Attributes:
        metrics: ap (mean over IoU 0.50 to 0.95), ap50, ap75, ap and ar100 by size of the object,
            ar1, ar10 and ar100: recall with so many detections per image.
        ap_per_class: ap of each class that occurs, by name.
        ap50_per_class: the same at IoU 0.50.
        curves: precision (101,) at RECALLS and IoU 0.50 of each class that occurs.
    """

    metrics: dict[str, float]
    ap_per_class: dict[str, float] = field(default_factory=dict)
    ap50_per_class: dict[str, float] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)


def average_precision(
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> Precision:
    """Score the detections of a whole data set.

    As in pycocotools, crowds needn't be found and detections in them are not counted as wrong, and
    a class without an object counts in no mean.

    Attributes:
        records: one for each image, in any order.
        classes: name of each class id.
        iou_type: "bbox", or "segm" for masks.
    """
    truth = _truth(records, classes, iou_type)
    if not any(not annotation["iscrowd"] for annotation in truth.dataset["annotations"]):
        return Precision({"ap": 0.0, "ap50": 0.0})  # nothing to find
    found = truth.loadRes(_detections(records, iou_type))
    evaluation = COCOeval_faster(truth, found, iou_type)
    evaluation.params.maxDets, evaluation.params.recThrs = list(LIMITS), RECALLS
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU, recall, class, size, detections per image), and the same without recall.
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    thresholds = evaluation.params.iouThrs
    at_50, at_75 = (int(np.flatnonzero(np.isclose(thresholds, t))[0]) for t in (0.50, 0.75))
    metrics = {
        "ap": precision[:, :, :, 0, -1],
        "ap50": precision[at_50, :, :, 0, -1],
        "ap75": precision[at_75, :, :, 0, -1],
        **{f"ap_{size}": precision[:, :, :, n, -1] for n, size in enumerate(SIZES, start=1)},
        **{f"ar{limit}": recall[:, :, 0, n] for n, limit in enumerate(LIMITS)},
        **{f"ar_{size}": recall[:, :, n, -1] for n, size in enumerate(SIZES, start=1)},
    }
    occurs = [number for number in range(len(classes)) if (recall[:, number, 0, -1] > -1).any()]
    return Precision(
        metrics={name: _mean(values) for name, values in metrics.items() if (values > -1).any()},
        ap_per_class={classes[n]: _mean(precision[:, :, n, 0, -1]) for n in occurs},
        ap50_per_class={classes[n]: _mean(precision[at_50, :, n, 0, -1]) for n in occurs},
        curves={classes[n]: precision[at_50, :, n, 0, -1] for n in occurs},
    )


def _mean(values: np.ndarray) -> float:
    return float(values[values > -1].mean())


def _truth(records: Sequence[ImageRecord], classes: Sequence[str], iou_type: str) -> COCO:
    annotations = []
    for record in records:
        truth = record.truth
        columns = ("boxes", "labels", "iscrowd", "area")
        rows = zip(*(np.asarray(truth[name]).tolist() for name in columns), strict=True)
        for number, (box, label, crowd, area) in enumerate(rows):
            annotation = {
                # From 1, since the evaluator takes an id of 0 for no match.
                "id": len(annotations) + 1,
                "image_id": record.index,
                "bbox": box,
                "category_id": label,
                "iscrowd": crowd,
                "area": area,
            }
            if iou_type == "segm":
                annotation["segmentation"] = truth["rles"][number]
            annotations.append(annotation)
    images = [{"id": r.index, "height": r.size[0], "width": r.size[1]} for r in records]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    return COCO({"images": images, "annotations": annotations, "categories": categories})


def _detections(records: Sequence[ImageRecord], iou_type: str) -> list[dict[str, Any]]:
    found = []
    for record in records:
        columns = (record.boxes.tolist(), record.scores.tolist(), record.labels.tolist())
        for number, (box, score, label) in enumerate(zip(*columns, strict=True)):
            detection = {"image_id": record.index, "category_id": label, "score": score}
            if iou_type == "segm":
                detection["segmentation"] = record.rles[number]
            else:
                detection["bbox"] = box
            found.append(detection)
    return found
