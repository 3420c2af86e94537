"""Drawn images of shapes on textured grounds: data that needs no download.

Grounds are greyish and shapes vivid, so finding a shape is easy. Naming it is not: each kind only
prefers a hue, which gives away about every other shape, and a good score takes the outlines. Sizes
vary by a factor of three, shapes hide each other and let the ground show through, and light and
noise lie over everything.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

SHAPES = ("disk", "square", "triangle", "ring", "cross", "star")
# To draw the background and the shapes in.
COLORS = (
    (40, 42, 54),
    (230, 75, 60),
    (70, 150, 235),
    (250, 200, 60),
    (90, 190, 110),
    (175, 110, 225),
    (245, 140, 190),
)
# Share of the shapes that have the hue their kind prefers.
PREFERENCE = 0.6


@dataclass(frozen=True)
class Shape:
    """A shape in an image.

    Attributes:
        kind: one of SHAPES.
        center: (y, x) in pixels.
        radius: of the circle around the shape, in pixels, before stretching.
        angle: in radians.
        stretch: factor along the shape's own x axis.
    """

    kind: str
    center: tuple[float, float]
    radius: float
    angle: float
    stretch: float = 1.0

    def window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns that the shape can touch in an image of ``size`` (height, width)."""
        reach = self.radius * max(1.0, self.stretch) + 1
        return tuple(
            slice(max(0, int(middle - reach)), min(length, int(middle + reach) + 1))
            for middle, length in zip(self.center, size, strict=True)
        )

    def covers(self, window: tuple[slice, slice]) -> np.ndarray:
        """Which pixels of a window lie inside the shape: bool (H, W)."""
        y, x = np.ogrid[window]
        y, x = (y - self.center[0]) / self.radius, (x - self.center[1]) / self.radius
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return _inside(self.kind, (cos * x + sin * y) / self.stretch, cos * y - sin * x)


@dataclass(frozen=True)
class Scene:
    """A drawn image and what is in it.

    Attributes:
        image: uint8 (H, W, 3).
        shapes: from back to front.
        top: int16 (H, W): index of the shape that is seen at a pixel, -1 for the ground.
    """

    image: np.ndarray
    shapes: list[Shape]
    top: np.ndarray

    def class_mask(self) -> np.ndarray:
        """Class ids, 0 for the ground and 1 + the position in SHAPES: uint8 (H, W)."""
        ids = np.array([SHAPES.index(shape.kind) + 1 for shape in self.shapes] + [0], np.uint8)
        return ids[self.top]  # -1 is the last entry


def _inside(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie inside the shape of radius 1 about the origin."""
    if kind == "disk":
        return x * x + y * y < 0.8
    if kind == "square":
        return np.maximum(abs(x), abs(y)) < 0.75
    if kind == "triangle":
        return (y > -0.5) & (np.sqrt(3) * abs(x) + y < 1)
    if kind == "ring":
        return abs(x * x + y * y - 0.6) < 0.35
    if kind == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 0.95)
    # star: fold the plane into a tenth of it, where the outline is one straight edge.
    inner, half = 0.42, np.pi / 5
    angle = abs((np.arctan2(y, x) + half) % (2 * half) - half)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    corner_x, corner_y = inner * np.cos(half), inner * np.sin(half)
    return (along - 1) * corner_y - across * (corner_x - 1) < 0


def texture(
    rng: np.random.Generator, size: tuple[int, int], color: np.ndarray | None = None
) -> np.ndarray:
    """A colour with blotches and stripes: float32 (H, W, 3), mostly within 0..255.

    Args:
        rng: source of everything random.
        size: (height, width) in pixels.
        color: RGB; None for a grey with a tint.
    """
    height, width = size
    if color is None:
        color = rng.uniform(60, 195) + rng.uniform(-15, 15, 3)
    cells = int(rng.integers(2, 9))
    coarse = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), dtype=np.float32))
    blotches = interpolate(coarse, size, mode="bilinear")[0].numpy().transpose(1, 2, 0)
    y, x = np.ogrid[:height, :width]
    angle, wavelength = rng.uniform(0, np.pi), rng.uniform(4, 24)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / wavelength), dtype="f4")
    relief = rng.uniform(6, 26) * blotches + rng.uniform(0, 24) * wave[..., None]
    return (color + relief * rng.uniform(0.5, 1, 3)).astype(np.float32)


def shape_color(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A vivid colour, RGB: more often than not of the hue that the kind prefers, else of any hue.

    So a network learns something from colours at once, and the rest only from outlines.
    """
    if rng.uniform() < PREFERENCE:
        hue = (SHAPES.index(kind) + rng.uniform(-0.5, 0.5)) / len(SHAPES)
    else:
        hue = rng.uniform()
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.5, 1)))


def random_shape(rng: np.random.Generator, size: tuple[int, int]) -> Shape:
    """A shape of any kind, mostly small, with its centre in the image."""
    return Shape(
        kind=SHAPES[rng.integers(len(SHAPES))],
        center=(rng.uniform(0, size[0]), rng.uniform(0, size[1])),
        radius=min(size) * 0.12 * 3.0 ** rng.uniform(),
        angle=rng.uniform(0, 2 * np.pi),
        stretch=1.3 ** rng.uniform(-1, 1),
    )


def draw(
    rng: np.random.Generator,
    shapes: Sequence[Shape],
    size: tuple[int, int],
) -> Scene:
    """Paint shapes over a ground, from back to front, each with its own texture.

    Args:
        rng: source of everything random.
        shapes: from back to front.
        size: (height, width) in pixels.
    """
    canvas = texture(rng, size)
    top = np.full(size, -1, dtype=np.int16)
    for number, shape in enumerate(shapes):
        window = shape.window(size)
        covered = shape.covers(window)
        paint = texture(rng, covered.shape, shape_color(rng, shape.kind))
        # Some shapes take on most of what is behind them: low contrast, only the outline remains.
        opacity = rng.uniform(0.6, 1.0)
        canvas[window][covered] += opacity * (paint - canvas[window])[covered]
        top[window][covered] = number
    y, x = np.linspace(-1, 1, size[0])[:, None], np.linspace(-1, 1, size[1])
    light = rng.uniform(-0.25, 0.25, 2)
    canvas *= (1 + light[0] * y + light[1] * x).astype(np.float32)[..., None]
    canvas += rng.uniform(2, 12) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Scene(canvas.clip(0, 255).astype(np.uint8), list(shapes), top)
