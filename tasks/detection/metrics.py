"""COCO's average precision of detections gathered from all processes, by faster-coco-eval.

torchmetrics' MeanAveragePrecision wraps the same evaluator and agrees, but takes masks as pixels
where run lengths do, rounds to float32, and replaces an area of 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask

from data.collector import collector_paused
from tasks.detection.records import Records

SIZES = ("small", "medium", "large")
LIMITS = (1, 10, 100)  # detections per image that COCO counts
RECALLS = np.linspace(0, 1, 101)  # COCO measures precision at these


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


@collector_paused()
def average_precision(
    records: Sequence[Records],
    classes: Sequence[str],
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> Precision:
    """Score the detections of a whole data set.

    As in pycocotools, crowds needn't be found and detections in them are not counted as wrong, and
    a class without an object counts in no mean.

    Args:
        records: of the images, in any order.
        classes: name of each class id.
        iou_type: "bbox", or "segm" for masks.
    """
    if all(record.truth["iscrowd"].all() for record in records):
        return Precision({"ap": 0.0, "ap50": 0.0})  # nothing to find
    joined = Records.joined(records)
    truth, found = (
        _data_set(joined, part, classes, iou_type) for part in (joined.truth, joined.found)
    )
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


def _data_set(
    records: Records, objects: dict[str, Any], classes: Sequence[str], iou_type: str
) -> COCO:
    """The truth or the detections of all images as the evaluator takes them."""
    columns = {
        # From 1, since the evaluator takes an id of 0 for no match.
        "id": range(1, len(objects["labels"]) + 1),
        "image_id": objects["image"].tolist(),
        "category_id": objects["labels"].tolist(),
        "bbox": objects["boxes"].tolist(),
    }
    if iou_type == "segm":
        columns["segmentation"] = objects["rles"]
    if "scores" in objects:
        masks = iou_type == "segm" and len(objects["rles"])
        area = coco_mask.area(objects["rles"]) if masks else objects["boxes"][:, 2:].prod(1)
        columns |= {"score": objects["scores"].tolist(), "iscrowd": [0] * len(area)}
    else:
        area = objects["area"]
        columns["iscrowd"] = objects["iscrowd"].tolist()
    columns["area"] = area.tolist()
    names = tuple(columns)
    rows = zip(*columns.values(), strict=True)
    annotations = [dict(zip(names, row, strict=True)) for row in rows]
    sizes = zip(records.images.tolist(), *records.sizes.T.tolist(), strict=True)
    images = [{"id": number, "height": height, "width": width} for number, height, width in sizes]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    return COCO({"images": images, "annotations": annotations, "categories": categories})
