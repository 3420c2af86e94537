"""The classes of a long video over its time, from clips slid over it."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from data.masks import Color
from figures.canvas import FONT, GAP, INK, PAPER, framed, stack
from figures.sheet import color_key
from tasks.classification.inference import ClassificationResult

WIDTH, HEIGHT, MARGIN = 900, 220, 40  # pixels of the plot, and beside it for the axes
SHOWN = 8  # classes with a line of their own: those that reach most


@dataclass(frozen=True)
class Curve:
    """Probabilities over time.

    Attributes:
        times: (N,) seconds at which the clips begin.
        seconds: for how long a clip lasts.
        probabilities: (N, K).
        classes: name of each class.
    """

    times: np.ndarray
    seconds: float
    probabilities: Tensor
    classes: list[str]

    @cached_property
    def mean(self) -> ClassificationResult:
        """Over all clips."""
        return ClassificationResult(self.probabilities.mean(0), self.classes)

    def parts(self) -> list[dict[str, Any]]:
        """The stretches in which one class is the most probable: from, to (seconds), class."""
        best = self.probabilities.argmax(1).tolist()
        found: list[dict[str, Any]] = []
        for time, label in zip(self.times.tolist(), best, strict=True):
            if not found or found[-1]["class"] != self.classes[label]:
                found.append({"from": time, "class": self.classes[label]})
            found[-1]["to"] = time + self.seconds
        return found


def write_curve(path: Path, curve: Curve) -> None:
    """Write a table: a line per clip, the probability of each class."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["seconds", *curve.classes])
        for time, row in zip(curve.times.tolist(), curve.probabilities.tolist(), strict=True):
            table.writerow([f"{time:.3f}", *(f"{share:.6f}" for share in row)])


def curve_figure(curve: Curve, colors: list[Color]) -> Tensor:
    """Probability over time, a line per class: uint8 (3, H, W)."""
    canvas = Image.new("RGB", (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    start, end = float(curve.times[0]), float(curve.times[-1])
    span = max(end - start, 1e-9)

    def place(time: float, share: float) -> tuple[float, float]:
        return MARGIN + (time - start) / span * WIDTH, MARGIN + (1 - share) * HEIGHT

    pen.rectangle((*place(start, 1), *place(start + span, 0)), outline=INK)
    for share in (0.0, 0.5, 1.0):
        x, y = place(start, share)
        pen.text((x - GAP, y), f"{share:g}", fill=INK, font=FONT, anchor="rm")
    for part in range(5):
        time = start + span * part / 4
        x, y = place(time, 0)
        pen.text((x, y + GAP), f"{time:.1f} s", fill=INK, font=FONT, anchor="mt")
    shown = curve.probabilities.max(0).values.topk(min(SHOWN, len(curve.classes))).indices.tolist()
    for label in shown:
        shares = curve.probabilities[:, label].tolist()
        points = [place(*each) for each in zip(curve.times.tolist(), shares, strict=True)]
        if len(points) == 1:
            points = [(MARGIN, points[0][1]), (MARGIN + WIDTH, points[0][1])]
        pen.line(points, fill=colors[label], width=2)
    named = [(curve.classes[label], colors[label]) for label in shown]
    return framed(stack([F.pil_to_tensor(canvas), color_key(named, WIDTH)], GAP))


def slid(times: np.ndarray, every: float) -> list[int]:
    """The frames at which clips begin, ``every`` seconds apart."""
    elapsed = times - times[0]
    starts = np.arange(0, elapsed[-1] + 1e-9, every)
    return np.unique(np.searchsorted(elapsed, starts - 1e-6)).tolist()
