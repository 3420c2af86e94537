"""Videos of a moving shape whose class is the motion: data that needs no download.

No single frame tells the class. A frame is drawn from the state of the shape (its place on a frame
whose opposite borders touch, its angle, its size) and from things that have nothing to do with the
class. Each part of the state is a phase in [0, 1). Its first value is uniformly distributed, and
the class adds a constant speed, or none. A uniform phase plus a constant, modulo 1, is uniform: at
each instant the frames of all classes have exactly the same distribution, so a model of single
frames can't do better than chance. The classes come in pairs that play each other backwards, so
the amount of motion doesn't tell the class either, only the order of the frames does.

Finding the motion takes work too: the ground is textured and drifts on its own, a second shape of
similar looks stands still, the light flickers, and noise lies over everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data.decode import Cell
from data.synthetic import SHAPES, Shape, shape_color, texture
from tasks.video.decoding.base import Video

CLASSES = ("right", "left", "down", "up", "growing", "shrinking")
COUNTS = {"train": 800, "val": 120}  # videos of each split
FRAMES = 16  # per video
FRAME_SIZE = (64, 64)  # height and width in pixels
RATE = 10.0  # frames per second
# The parts of a shape's state: one for each pair of classes, in their order, and ANGLE, which no
# class changes.
ALONG, DOWN, SIZE, ANGLE = range(4)
# Largest over smallest radius; a shape that grows beyond the largest goes on at the smallest.
GROWTH = 2.5
# Slowest and fastest change per frame of ALONG, DOWN and SIZE; 1 is the whole range of the phase.
SPEEDS = ((0.025, 0.055), (0.025, 0.055), (0.04, 0.07))
DRIFT = 0.3  # fastest motion of the ground, in pixels per frame


@dataclass(frozen=True)
class Actor:
    """A shape of constant colour and kind, in motion or at rest.

    Attributes:
        kind: one of SHAPES.
        color: RGB.
        phases: state at frame 0, each in [0, 1): ALONG, DOWN, SIZE and ANGLE.
        speeds: what a frame adds to each phase.
    """

    kind: str
    color: np.ndarray
    phases: np.ndarray
    speeds: np.ndarray

    def draw(self, canvas: np.ndarray, frame: int) -> None:
        """Paint the shape onto a float canvas (H, W, 3) in the state that it has at a frame."""
        height, width = canvas.shape[:2]
        state = (self.phases + frame * self.speeds) % 1
        y, x = state[DOWN] * height, state[ALONG] * width
        angle, radius = 2 * np.pi * state[ANGLE], 0.15 * min(height, width) * GROWTH ** state[SIZE]
        # Drawn in the middle and rolled into place: what leaves on one side returns on the other.
        middle = height // 2 + y % 1, width // 2 + x % 1
        shape = Shape(self.kind, middle, radius, angle)
        window = shape.window((height, width))
        covered = shape.covers(window)
        rows, columns = np.nonzero(covered)
        rows, columns = rows + window[0].start, columns + window[1].start
        # Light to dark across the shape, so that a shape is more than its outline.
        across = np.cos(angle) * (columns - middle[1]) + np.sin(angle) * (rows - middle[0])
        shade = 1 + 0.6 * across / radius
        rows = (rows + int(y) - height // 2) % height
        columns = (columns + int(x) - width // 2) % width
        canvas[rows, columns] = shade[:, None] * self.color


class SyntheticVideo(Video):
    """One video; a frame is drawn when it is read.

    Args:
        seed: the video is a function of this, ``label``, ``length`` and ``size`` alone.
        label: position in CLASSES.
        length: number of frames.
        size: (height, width) in pixels.
    """

    def __init__(self, seed: list[int], label: int, length: int, size: tuple[int, int]) -> None:
        self.seed, self.size = seed, size
        self.times = np.arange(length) / RATE
        rng = np.random.default_rng(seed)
        moves = np.zeros(4)
        part, backwards = divmod(label, 2)
        moves[part] = rng.uniform(*SPEEDS[part]) * (-1 if backwards else 1)
        self.actors = [_actor(rng, np.zeros(4)), _actor(rng, moves)]
        self.drift = DRIFT * rng.uniform(-1, 1, 2)
        self.margin = int(np.ceil(DRIFT * length))
        self.ground = texture(rng, tuple(length + 2 * self.margin for length in size))
        self.flicker, self.noise = rng.uniform(0, 0.1), rng.uniform(2, 8)

    def frames(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """Draw these frames."""
        height, width = self.size
        for number in numbers.tolist():
            top, left = (self.margin + np.round(self.drift * number)).astype(int)
            canvas = self.ground[top : top + height, left : left + width].copy()
            for actor in self.actors:
                actor.draw(canvas, number)
            rng = np.random.default_rng([*self.seed, number])
            canvas *= np.float32(1 + self.flicker * rng.uniform(-1, 1))
            canvas += self.noise * rng.standard_normal(canvas.shape, dtype=np.float32)
            yield torch.from_numpy(canvas.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def _actor(rng: np.random.Generator, speeds: np.ndarray) -> Actor:
    kind = SHAPES[rng.integers(len(SHAPES))]
    return Actor(kind, shape_color(rng, kind), rng.uniform(size=4), speeds)


@dataclass(frozen=True)
class SyntheticVideos:
    """The videos of both splits, opened by their paths; no such files exist.

    Attributes:
        seed: of the data set.
    """

    seed: int

    def labels(self, split: str) -> np.ndarray:
        """The label of each video of a split: all equally often, in random order."""
        rng = np.random.default_rng([self.seed, _number(split)])
        return rng.permutation(np.arange(COUNTS[split]) % len(CLASSES))

    @staticmethod
    def path(split: str, number: int) -> str:
        """The path that stands for a video of a split."""
        return f"synthetic/{split}/{number:05d}"

    def open(self, cell: Cell, name: str, decoder: str) -> SyntheticVideo:
        """Prepare a video; nothing is drawn yet.

        Args:
            cell: the video's path.
            name: unused, since no error is possible.
            decoder: unused, since nothing is decoded.
        """
        _, split, number = cell["path"].split("/")
        label = int(self.labels(split)[int(number)])
        return SyntheticVideo([self.seed, _number(split), int(number)], label, FRAMES, FRAME_SIZE)


def _number(split: str) -> int:
    """What a split is called in seeds."""
    return list(COUNTS).index(split)
