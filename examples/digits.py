"""Images of 28 x 28 grey pixels in ten classes, for data_parallel_from_scratch.py.

They are drawn, as a seven-segment display shows digits, or read from the files of FashionMNIST or
MNIST.
"""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from errors import UserError

# Segments of a display as (middle x, middle y, half width, half height), for a digit 1 wide and 2
# high: clockwise from the top one to the upper left one, then the middle one.
SEGMENTS = (
    (0.5, 0.0, 0.5, 0.12),
    (1.0, 0.5, 0.12, 0.5),
    (1.0, 1.5, 0.12, 0.5),
    (0.5, 2.0, 0.5, 0.12),
    (0.0, 1.5, 0.12, 0.5),
    (0.0, 0.5, 0.12, 0.5),
    (0.5, 1.0, 0.5, 0.12),
)
# The segments that each digit lights.
LIT = ("012345", "12", "01346", "01236", "1256", "02356", "023456", "012", "0123456", "012356")


def draw_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw digits of random place, size, slant and brightness, with noise.

    Returns:
        Images (N, 1, 28, 28), mostly between 0 and 1, and labels (N,).
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    labels = torch.randint(10, (count,), generator=generator)
    lit = torch.tensor([[str(segment) in digit for segment in range(7)] for digit in LIT])
    size, slant = uniform(6, 9), uniform(-0.4, 0.4)
    # Every pixel's place on the digit, whose middle is (0.5, 1).
    y = (torch.arange(28.0).view(1, 28, 1) - uniform(11, 17)) / size + 1
    x = (torch.arange(28.0).view(1, 1, 28) - uniform(10, 18)) / size + 0.5 + slant * (y - 1)
    images = torch.zeros(count, 28, 28)
    for number, (middle_x, middle_y, half_width, half_height) in enumerate(SEGMENTS):
        inside = ((x - middle_x).abs() < half_width) & ((y - middle_y).abs() < half_height)
        images[inside & lit[labels, number].view(-1, 1, 1)] = 1
    images = images * uniform(0.4, 1) + 0.2 * torch.randn(images.shape, generator=generator)
    return images[:, None], labels


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of a split from the files as published, gzipped or not.

    Args:
        folder: holds the idx files, directly or in torchvision's FashionMNIST/raw.
        split: "train" or "t10k".

    Returns:
        Images (N, 1, 28, 28) from 0 to 1 and labels (N,).

    Raises:
        UserError: a file is missing or damaged, or holds something else.
    """
    images = _read_idx(folder, f"{split}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", dimensions=1).long()
    if images.shape != (len(labels), 28, 28) or not len(labels) or labels.max() > 9:
        raise UserError(
            f"The {split} files in {folder} hold {len(labels)} labels and images of shape "
            f"{tuple(images.shape)}; give a folder of 28 x 28 images with labels from 0 to 9."
        )
    return images[:, None] / 255, labels


def _read_idx(folder: Path, name: str, dimensions: int) -> Tensor:
    # An idx file begins with four bytes: zero, zero, the type (8 is uint8), the number of
    # dimensions. Then come the sizes as 32-bit integers, high byte first, and the values.
    path = _find(folder, name)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read ({error}); download it again.") from None
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    values = bytearray(content[start:])
    if content[:4] != bytes([0, 0, 8, dimensions]) or not 0 < len(values) == math.prod(sizes):
        raise UserError(f"{path} is not a complete idx file of bytes; download it again.")
    return torch.frombuffer(values, dtype=torch.uint8).view(sizes)


def _find(folder: Path, name: str) -> Path:
    for place in ("", "raw", "FashionMNIST/raw", "MNIST/raw"):
        for path in (folder / place / name, folder / place / f"{name}.gz"):
            if path.is_file():
                return path
    raise UserError(f"{folder} has neither {name} nor {name}.gz; give a folder that has one.")
