"""Images and masks from paths or bytes to uint8, and the error that names an unreadable one.

Each is a cell of a ``datasets.Image(decode=False)`` column: ``{"path": str, "bytes": bytes}``, of
which one may be None. JPEG files are decoded by torchvision, which takes as little as half of
Pillow's time, and everything else by Pillow: torchvision's PNG decoder ends the process with
SIGSEGV at almost any flipped bit, and its WebP decoder neither turns images nor takes animations.
"""

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from data.folders import MOST_PIXELS, PICTURE_FORMATS
from data.png import first_bad_chunk
from errors import UserError

try:
    from torchvision.io import decode_image
except ImportError:  # torchvision has announced the removal of its decoders
    decode_image = None

JPEG = b"\xff\xd8"
BAND = 2**22  # pixels that are converted at a time
# Pillow's names for images with one value per pixel.
MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N", "LA", "PA", "F")

Cell = dict  # {"path": str | None, "bytes": bytes | None}
Palette = list[tuple[int, int, int]]


class SampleError(UserError):
    """A sample that can't be used; the message is one sentence that names its file.

    A DataLoader re-raises a worker's exception as ``type(error)(report)``, where the report is the
    worker's traceback with the message as its last line. This class takes the message back out, so
    that the main process catches the same exception whatever the number of workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class StoredMask(NamedTuple):
    """A mask as it is stored.

    Attributes:
        values: uint8 (H, W) of ids, or (H, W, 3) of colours.
        palette: the colour of each id, where the file has a palette, or fewer than 8 bits per
            pixel: there 0 and 1, say, are stored and black and white are meant.
    """

    values: np.ndarray
    palette: Palette | None = None


def cell_name(cell: Cell | None, otherwise: str) -> str:
    """What a message calls an image, mask or video: its path, or ``otherwise`` without one."""
    return (cell or {}).get("path") or otherwise


def read_image(cell: Cell | None, name: str, upright: bool = True) -> torch.Tensor:
    """Decode an image as RGB; see ``rgb_bands``.

    Returns:
        uint8 tensor (3, H, W).
    """
    with rgb_bands(cell, name, upright) as (size, bands):
        if isinstance(bands, torch.Tensor):
            return bands
        return joined(size, bands)


def joined(size: tuple[int, int], bands: Iterable[np.ndarray]) -> torch.Tensor:
    """Bands uint8 (rows, W, 3) of an image of ``size`` (H, W) as a tensor (3, H, W)."""
    pixels, top = np.empty((*size, 3), np.uint8), 0
    for band in bands:
        pixels[top : top + len(band)] = band
        top += len(band)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextlib.contextmanager
def rgb_bands(
    cell: Cell | None, name: str, upright: bool = True
) -> Iterator[tuple[tuple[int, int], torch.Tensor | Iterator[np.ndarray]]]:
    """Decode an image as RGB, whose pixels are handed out band by band where it is large.

    Of an animation it is the first frame. Values of 16 bits are divided by 256. Fractions (float
    TIFF) must lie between 0, black, and 1, white. Transparency is left out.

    Args:
        cell: path or bytes of a JPEG file, or of anything else that Pillow opens.
        name: what a message calls the image.
        upright: turn the image as its EXIF orientation says.

    Yields:
        (height, width), and uint8 (rows, W, 3) bands from top to bottom. A JPEG image is decoded as
        a whole: uint8 tensor (3, H, W).

    Raises:
        SampleError: the image is missing, can't be decoded completely, or holds values whose range
            isn't known.
    """
    data = _contents(cell, name)
    if data.startswith(JPEG) and decode_image is not None:
        try:
            # A bytearray, because torch warns about tensors over read-only memory.
            data = bytearray(data)
            stored = torch.frombuffer(data, dtype=torch.uint8)
            decoded = decode_image(stored, mode="RGB", apply_exif_orientation=upright)
        except (RuntimeError, ValueError) as error:
            raise _undecodable(name, error) from None
        yield tuple(decoded.shape[1:]), decoded
        return
    with _opened(data, name) as image:
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_eight_bits(image, name))
        yield (image.height, image.width), _bands(image)


def _bands(image: Image.Image) -> Iterator[np.ndarray]:
    """Of a whole image, Pillow's conversions would keep three more copies."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = image if image.height <= rows else image.crop(box)
        yield np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def read_mask(cell: Cell | None, name: str) -> StoredMask:
    """Decode a mask without interpreting it, upright as its EXIF orientation says.

    Pillow returns the stored ids of every palette and bit depth; torchvision 0.29 reads palette
    masks of 1, 2 or 4 bits (PNG files of up to 16 classes) as garbage.

    Args:
        cell: path or bytes of an image of ids or colours, of any kind that Pillow opens.
        name: what a message calls the mask.

    Raises:
        SampleError: the mask is missing, can't be decoded completely, was compressed with losses,
            or holds values that are not whole numbers from 0 to 255.
    """
    data = _contents(cell, name)
    if data.startswith(JPEG) or (data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 "):
        raise SampleError(
            f"{name} is compressed with losses (JPEG or WebP), which changes the values at every "
            "border between classes: export the mask again as PNG."
        )
    _refuse_scaled(data, name)
    with _opened(data, name) as image:
        levels = _levels(image, data)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode not in MASK_MODES:
            return StoredMask(np.asarray(image.convert("RGB")))
        values = np.asarray(image)
        palette = _palette(image)
    values = values[..., 0] if values.ndim == 3 else values
    if levels:
        step = 255 // (levels - 1)
        values, palette = values // step, [(step * v,) * 3 for v in range(levels)]
    _refuse_range(values, name)
    return StoredMask(values.astype(np.uint8, copy=False), palette)


def _levels(image: Image.Image, data: bytes) -> int:
    """Number of shades of a grey PNG of 2 or 4 bits, which Pillow spreads over 0 to 255; else 0."""
    bits = data[24] if image.format == "PNG" and image.mode == "L" else 8
    return 1 << bits if bits < 8 else 0


def _palette(image: Image.Image) -> Palette | None:
    if image.mode == "1":
        return [(0, 0, 0), (255, 255, 255)]
    if image.mode not in ("P", "PA"):
        return None
    flat = image.getpalette("RGB") or []
    return [tuple(flat[place : place + 3]) for place in range(0, len(flat), 3)]


def _refuse_scaled(data: bytes, name: str) -> None:
    """Refuse a PGM or PPM whose largest value isn't 255 or 65535: Pillow scales its values."""
    header = re.match(rb"P[2356]((?:\s+|#[^\n]*\n)+\d+){3}", data[:1000])
    largest = int(re.search(rb"\d+$", header[0])[0]) if header else 255
    if largest not in (255, 65535):
        raise SampleError(
            f"{name} says that its largest value is {largest}, and is read scaled to 255: save the "
            "mask as PNG."
        )


def _refuse_range(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        raise SampleError(f"{name} holds fractions: save it as a mask of whole class ids.")
    if values.dtype.itemsize > 1:
        for value in (values.min(initial=0), values.max(initial=0)):
            if not 0 <= value <= 255:
                raise SampleError(
                    f"{name} holds the value {value:g}, but class ids go from 0 to 255: use a mask "
                    "of class ids, not of instances or depths."
                )


def _eight_bits(image: Image.Image, name: str) -> np.ndarray:
    """An image of 16-bit, 32-bit or floating-point values as uint8 (H, W)."""
    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise SampleError(
                f"{name} holds fractions from {low:g} to {high:g}, and only 0 to 1 have a meaning: "
                "save it with 8 bits, or scaled to 0 to 1."
            )
        return (values * 255 + 0.5).astype(np.uint8)
    # Pillow opens PGM files of 16 bits as 32-bit numbers, scaled to 65535.
    if image.mode == "I" and image.format != "PPM":
        raise SampleError(
            f"{name} holds 32-bit numbers from {low} to {high}, whose range isn't known: save it "
            "with 8 or 16 bits."
        )
    return (values >> 8).astype(np.uint8)


def _contents(cell: Cell | None, name: str) -> bytes:
    """The bytes of a cell's file; Pillow and torch would read them from the path no faster."""
    if not cell or (cell["path"] is None and cell["bytes"] is None):
        raise SampleError(f"{name} is missing: add it, or remove the sample.")
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        if not stat.S_ISREG(os.stat(cell["path"]).st_mode):  # a pipe would be waited for
            raise SampleError(f"{name} is no regular file: replace it or remove it.")
        with open(cell["path"], "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise _undecodable(name, error) from None


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image in a file's bytes; whatever Pillow raises in the context becomes a SampleError."""
    try:
        if problem := first_bad_chunk(data):
            raise ValueError(problem)
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
            image.load()
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise SampleError(
            f"{name} has more than {MOST_PIXELS:,} pixels, which is too many to read: cut "
            "it into tiles."
        ) from None
    except Exception as error:  # Pillow's decoders raise many types for broken files
        raise _undecodable(name, error) from None


def _undecodable(name: str, error: Exception) -> SampleError:
    if "No such file" in str(error):
        return SampleError(f"{name} does not exist: restore it, or remove it from the data set.")
    # torchvision puts the place in its C++ source before the reason; Pillow names an object.
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    reason = re.sub(r"^.*\.cpp:\d+, ", "", reason)
    reason = re.sub(r"cannot identify image file.*", "it is not an image", reason).rstrip(".")
    return SampleError(f"{name} can't be decoded ({reason}): replace it or remove it.")
