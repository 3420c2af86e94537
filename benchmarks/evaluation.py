"""What an evaluation costs on the CPU, against the pieces that are usually taken, by turns.

    python benchmarks/evaluation.py

    pixels     confusion matrix and loss of a picture of 1024x2048 pixels and 19 classes: by argmax,
               a mask of the valid pixels, bincount and cross_entropy as in torchvision's reference
               scripts, and by this project's one pass over the logits
    objects    COCO's average precision: pycocotools, and this project's way to faster-coco-eval
    records    what a process sends of its pictures: tensors for each one, and joined arrays

Both ways take turns, so that other work of the machine slows both. The ratio is the median over the
rounds, followed by the range of the middle half; times are those of this process's processor.
"""

import argparse
import contextlib
import io
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

from tasks.detection.metrics import average_precision
from tasks.detection.records import Records
from tasks.segmentation.metrics import count_pixels

CLASSES, HEIGHT, WIDTH = 19, 1024, 2048
KINDS = 80  # of objects


def compare(
    name: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int
) -> None:
    """Print both times and their ratio."""
    pairs = []
    for _ in range(rounds):
        seconds = []
        for way in (usual, ours):
            start = time.process_time()
            way()
            seconds.append(time.process_time() - start)
        pairs.append(seconds)
    theirs, mine = np.array(pairs).T
    low, middle, high = np.quantile(theirs / mine, [0.25, 0.5, 0.75])
    print(
        f"{name:24} {1e3 * np.median(theirs):9.1f} ms {1e3 * np.median(mine):9.1f} ms "
        f"{middle:7.2f} {low:6.2f} - {high:.2f}",
        flush=True,
    )


def usual_count(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Confusion matrix and loss as torchvision's reference scripts compute them."""
    valid = (mask >= 0) & (mask < CLASSES)
    cells = CLASSES * mask[valid] + logits.argmax(1)[valid]
    confusion = torch.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return confusion, F.cross_entropy(logits, mask, ignore_index=255, reduction="sum")


def pixels(rounds: int) -> None:
    """A picture's logits in both layouts."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, CLASSES, HEIGHT // 4, WIDTH // 4, generator=generator)
    mask = torch.randint(0, CLASSES, (1, HEIGHT, WIDTH), generator=generator)
    mask[torch.rand(1, HEIGHT, WIDTH, generator=generator) < 0.1] = 255
    for name, layout in (
        ("contiguous", torch.contiguous_format),
        ("channels-last", torch.channels_last),
    ):
        logits = F.interpolate(small, (HEIGHT, WIDTH), mode="bilinear")
        logits = logits.contiguous(memory_format=layout)
        confusion, loss = count_pixels(logits, mask, None)
        expected, expected_loss = usual_count(logits, mask)
        assert torch.equal(confusion, expected)
        assert torch.allclose(loss, expected_loss.double(), rtol=1e-4)
        compare(
            f"pixels, {name}",
            lambda logits=logits: usual_count(logits, mask),
            lambda logits=logits: count_pixels(logits, mask, None),
            rounds,
        )


def picture(rng: np.random.Generator, index: int) -> tuple[dict, dict]:
    """A picture's objects, about seven, and a hundred detections around them, as tensors."""
    count = 1 + int(rng.poisson(6.3))
    sides = rng.gamma(1.2, 60, (count, 2)).clip(4, 400)
    boxes = np.concatenate(
        [rng.random((count, 2)) * (np.array([640, 480]) - sides).clip(1), sides], 1
    )
    labels = rng.integers(0, KINDS, count)
    near = rng.integers(0, count, 100)
    noise = rng.choice([0.03, 0.1, 0.3, 1.0], (100, 1)) * rng.normal(size=(100, 4))
    found = boxes[near] + noise * np.tile(boxes[near, 2:], 2)
    found[:, 2:] = np.abs(found[:, 2:]) + 1
    guessed = np.where(rng.random(100) < 0.5, labels[near], rng.integers(0, KINDS, 100))
    truth = {
        "boxes": boxes,
        "labels": labels,
        "iscrowd": (rng.random(count) < 0.01).astype(np.int64),
        "area": 0.6 * boxes[:, 2] * boxes[:, 3],
    }
    detections = {"boxes": found, "labels": guessed, "scores": rng.beta(0.5, 3, 100)}
    return tuple({n: torch.from_numpy(v) for n, v in part.items()} for part in (truth, detections))


def by_pycocotools(pictures: list[tuple[dict, dict]]) -> float:
    """AP from a data set and results as its format has them."""
    truth, found = [], []
    for index, (objects, detections) in enumerate(pictures):
        columns = (objects[n].tolist() for n in ("boxes", "labels", "iscrowd", "area"))
        for box, label, crowd, area in zip(*columns, strict=True):
            entry = {"id": len(truth) + 1, "image_id": index, "category_id": label, "bbox": box}
            truth.append(entry | {"iscrowd": crowd, "area": area})
        columns = (detections[n].tolist() for n in ("boxes", "labels", "scores"))
        for box, label, score in zip(*columns, strict=True):
            entry = {"image_id": index, "category_id": label, "bbox": box, "score": score}
            found.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": n, "height": 480, "width": 640} for n in range(len(pictures))],
            "annotations": truth,
            "categories": [{"id": n, "name": str(n)} for n in range(KINDS)],
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def objects(count: int, rounds: int) -> None:
    """Average precision, and the records on their way between processes."""
    rng = np.random.default_rng(0)
    pictures = [picture(rng, index) for index in range(count)]
    records = [Records.of_image(n, (480, 640), *each) for n, each in enumerate(pictures)]
    names = [str(number) for number in range(KINDS)]

    def ours() -> float:
        return average_precision([Records.joined(records)], names).metrics["ap"]

    assert abs(ours() - by_pycocotools(pictures)) < 1e-9
    compare(f"objects, {count} pictures", lambda: by_pycocotools(pictures), ours, rounds)
    compare(
        f"records, {count} pictures",
        lambda: pickle.loads(pickle.dumps(pictures)),
        lambda: pickle.loads(pickle.dumps(Records.joined(records))),
        rounds,
    )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=5000, help="with objects")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':24} {'usual':>12} {'ours':>12} {'ratio':>7} {'middle half':>13}")
    pixels(options.rounds)
    objects(options.pictures, max(1, options.rounds // 3))


if __name__ == "__main__":
    main()
