"""COCO's average precision equals pycocotools' on the same detections."""

import contextlib
import io

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.detection.metrics import RECALLS, average_precision
from tasks.detection.records import Records

CLASSES = ["cat", "dog", "never there"]
SIZE = (240, 320)
STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def rle(box: np.ndarray) -> dict:
    mask = np.zeros(SIZE, np.uint8, order="F")
    x, y, w, h = box.round().astype(int)
    mask[y : y + max(1, h), x : x + max(1, w)] = 1
    encoded = coco_mask.encode(mask)
    counts = encoded["counts"]
    return {
        "size": list(SIZE),
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def record(rng: np.random.Generator, index: int) -> Records:
    """Objects of all sizes, some crowds; detections near them, doubled, missed, wrong, made up."""
    count = int(rng.integers(0, 7)) if index else 0  # image 0 is empty
    wh = 8 * 2.0 ** rng.uniform(0, 4, (count, 2))
    boxes = np.concatenate([rng.uniform(0, 1, (count, 2)) * (np.array(SIZE[::-1]) - wh), wh], 1)
    labels = rng.integers(0, 2, count)
    kept = np.repeat(np.arange(count), rng.integers(0, 3, count))
    noise = np.tile(boxes[kept, 2:], 2) * rng.normal(0, 0.05, (len(kept), 4))
    found = np.concatenate([boxes[kept] + noise, rng.uniform(5, 90, (3, 4))]).clip(1)
    guessed = np.concatenate([labels[kept], rng.integers(0, 2, 3)])
    truth = {
        "boxes": boxes,
        "labels": labels,
        "iscrowd": (rng.uniform(size=count) < 0.15).astype(int),
        "area": boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, count),
        "rles": [rle(box) for box in boxes],
    }
    scores = rng.uniform(size=len(found)) + np.r_[np.full(len(kept), 0.3), np.zeros(3)]
    rles = [rle(box) for box in found]
    detections = {"boxes": found, "scores": scores, "labels": guessed, "rles": rles}
    return Records.of_image(index, SIZE, truth, detections)


@pytest.fixture(scope="module")
def records() -> list[Records]:
    rng = np.random.default_rng(3)
    return [record(rng, index) for index in range(40)]


def reference(records: list[Records], iou_type: str) -> np.ndarray:
    """pycocotools' twelve numbers, from a data set written out as its format says."""
    truth = COCO()
    annotations = [
        {
            "id": 1000 * int(r.images[0]) + n + 1,
            "image_id": int(r.images[0]),
            "bbox": r.truth["boxes"][n].tolist(),
            "category_id": int(r.truth["labels"][n]),
            "iscrowd": int(r.truth["iscrowd"][n]),
            "area": float(r.truth["area"][n]),
            "segmentation": r.truth["rles"][n],
        }
        for r in records
        for n in range(len(r.truth["labels"]))
    ]
    truth.dataset = {
        "images": [{"id": int(r.images[0]), "height": SIZE[0], "width": SIZE[1]} for r in records],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = [
            {
                "image_id": int(r.images[0]),
                "category_id": int(r.found["labels"][n]),
                "score": float(r.found["scores"][n]),
                **(
                    {"bbox": r.found["boxes"][n].tolist()}
                    if iou_type == "bbox"
                    else {"segmentation": r.found["rles"][n]}
                ),
            }
            for r in records
            for n in range(len(r.found["scores"]))
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_it_is_pycocotools_score(records, iou_type) -> None:
    mine = average_precision(records, CLASSES, iou_type)
    expected = dict(zip(STATS, reference(records, iou_type), strict=True))
    assert 0.1 < expected["ap"] < 0.9
    assert mine.metrics == pytest.approx(expected, abs=1e-12)
    assert list(mine.ap_per_class) == ["cat", "dog"]
    assert np.mean(list(mine.ap_per_class.values())) == pytest.approx(expected["ap"])
    assert np.mean(list(mine.ap50_per_class.values())) == pytest.approx(expected["ap50"])
    precision = mine.curves["cat"]
    assert len(precision) == len(RECALLS)
    assert precision.mean() == pytest.approx(mine.ap50_per_class["cat"])


def test_neither_the_order_of_the_images_nor_their_grouping_matters(records) -> None:
    joined = [Records.joined(records[30:]), Records.joined(records[:30])]
    orders = (records, records[::-1], joined)
    first, *others = (average_precision(order, CLASSES, "segm").metrics for order in orders)
    for other in others:
        assert other == pytest.approx(first, abs=1e-12)


def test_perfect_and_empty_detections(records) -> None:
    def found(r: Records, keep: slice) -> Records:
        found = {name: r.truth[name][keep] for name in ("boxes", "labels")}
        found["scores"] = np.ones(len(found["labels"]))
        return Records.of_image(int(r.images[0]), SIZE, r.truth, found)

    perfect = average_precision([found(r, slice(None)) for r in records], CLASSES)
    assert perfect.metrics["ap"] == pytest.approx(1)
    nothing = average_precision([found(r, slice(0)) for r in records], CLASSES)
    assert nothing.metrics["ap"] == nothing.metrics["ar100"] == 0
    assert not nothing.curves["cat"].any()


def test_nothing_to_find(records) -> None:
    empty = [records[0]]
    assert average_precision(empty, CLASSES).metrics["ap"] == 0
