"""Videos of a moving shape whose class is the motion: data that needs no download.

No single frame tells the class. A frame is drawn from the state of the shape (its place on a
picture whose opposite borders touch, its angle, its size) and from things that have nothing to do
with the class. Each part of the state is a phase in [0, 1) that begins uniformly distributed and to
which the class adds a constant speed or none. A uniform phase plus a constant, modulo 1, is
uniform: at each instant the frames of all classes have exactly the same distribution, so a model of
single frames can't do better than chance. The classes come in pairs that play each other backwards,
so how much moves doesn't tell the class either, only in which order the frames follow.

To find the motion takes work too: the ground is textured and drifts its own way, a second shape of
the same kind of looks stands still, light flickers, and noise lies over everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data.decode import Cell
from data.synthetic import SHAPES, Shape, shape_color, texture
from tasks.video.decoding.base import Video

CLASSES = ("right", "left", "down", "up", "growing", "shrinking")
RATE = 10.0  # frames per second
# The parts of a shape's state, in the order of the pairs of classes; then what no class changes.
ALONG, DOWN, SIZE, ANGLE = range(4)
# Largest over smallest radius; growing beyond the largest goes on at the smallest.
GROWTH = 2.5
# Slowest and fastest change of a phase per frame: widths and heights of the picture, and growths.
SPEEDS = ((0.025, 0.055), (0.025, 0.055), (0.04, 0.07))
DRIFT = 0.3  # pixels per frame, at most, of the ground


@dataclass(frozen=True)
class Actor:
    """A shape that keeps its looks.

    Args:
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
        """Paint the shape as it is at a frame onto a float canvas (H, W, 3)."""
        height, width = canvas.shape[:2]
        state = (self.phases + frame * self.speeds) % 1
        y, x = state[DOWN] * height, state[ALONG] * width
        angle, radius = 2 * np.pi * state[ANGLE], 0.15 * min(height, width) * GROWTH ** state[SIZE]
        # Drawn in the middle and then rolled into place: what leaves on one side returns opposite.
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
    """One video; a frame is drawn when it is asked for.

    Args:
        seed: the video is a function of this, ``label``, ``frames`` and ``size`` alone.
        label: position in CLASSES.
        frames: number of frames.
        size: (height, width) in pixels.
    """

    def __init__(self, seed: list[int], label: int, frames: int, size: tuple[int, int]) -> None:
        self.seed, self.size = seed, size
        self.times = np.arange(frames) / RATE
        rng = np.random.default_rng(seed)
        moves = np.zeros(4)
        part, backwards = divmod(label, 2)
        moves[part] = rng.uniform(*SPEEDS[part]) * (-1 if backwards else 1)
        self.actors = [_actor(rng, np.zeros(4)), _actor(rng, moves)]
        self.drift = DRIFT * rng.uniform(-1, 1, 2)
        self.margin = int(np.ceil(DRIFT * frames))
        self.ground = texture(rng, tuple(length + 2 * self.margin for length in size))
        self.flicker, self.noise = rng.uniform(0, 0.1), rng.uniform(2, 8)

    def pictures(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
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


def labels(count: int, seed: int, split: int) -> np.ndarray:
    """The class of each video of a split: equally often, in random order."""
    return np.random.default_rng([seed, split]).permutation(np.arange(count) % len(CLASSES))


@dataclass(frozen=True)
class SyntheticOpener:
    """Opens the videos of a data set by the names that ``name`` gives them.

    Args:
        seed: of the data set.
        counts: videos of the two splits.
        frames: frames per video.
        size: (height, width) in pixels.
    """

    seed: int
    counts: tuple[int, int]
    frames: int
    size: tuple[int, int]

    @staticmethod
    def name(split: int, number: int) -> str:
        """What a video is called: split 0 is for training, 1 for validation."""
        return f"synthetic/{('train', 'val')[split]}/{number:05d}"

    def __call__(self, cell: Cell, name: str, decoder: str = "auto") -> SyntheticVideo:
        """Prepare the video; nothing is drawn yet, and no decoder is needed."""
        _, split_name, number = cell["path"].split("/")
        split = ("train", "val").index(split_name)
        label = int(labels(self.counts[split], self.seed, split)[int(number)])
        return SyntheticVideo([self.seed, split, int(number)], label, self.frames, self.size)
