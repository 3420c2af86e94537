"""Images and masks from paths or bytes to uint8, and the error that names an unreadable one.

Each is a cell of a ``datasets.Image(decode=False)`` column: ``{"path": str, "bytes": bytes}``, of
which one may be None. Images are decoded by torchvision, which takes as little as half of Pillow's
time for a JPEG, and by Pillow where torchvision can't. Masks are decoded by Pillow, which is as
fast on them and returns the stored ids of every palette and bit depth; torchvision 0.29 reads
palette masks of 1, 2 or 4 bits (PNG files of up to 16 classes) as garbage.
"""

import io
import re

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from errors import UserError

try:
    from torchvision.io import decode_image
except ImportError:  # torchvision has announced the removal of its decoders
    decode_image = None

# Pillow's names for images with one value per pixel.
MASK_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "LA", "F")

Cell = dict  # {"path": str | None, "bytes": bytes | None}


class SampleError(UserError):
    """A sample that can't be used; the message is one sentence that names its file.

    A DataLoader re-raises a worker's exception as ``type(error)(report)``, where the report is the
    worker's traceback with the message as its last line. This class takes the message back out, so
    that the main process catches the same exception whatever the number of workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def cell_name(cell: Cell | None, otherwise: str) -> str:
    """What a message calls an image, mask or video: its path, or ``otherwise`` without one."""
    return (cell or {}).get("path") or otherwise


def read_image(cell: Cell | None, name: str, upright: bool = True) -> torch.Tensor:
    """Decode an image as RGB.

    Args:
        cell: path or bytes of a JPEG, PNG, WebP or GIF, or of anything else that Pillow opens.
        name: what a message calls the image.
        upright: turn the image as its EXIF orientation says.

    Returns:
        uint8 tensor (3, H, W).

    Raises:
        SampleError: the image is missing, or can't be decoded completely.
    """
    _refuse_none(cell, name)
    if decode_image is None:
        return _read_with_pillow(cell, name, upright)
    source = cell["path"] if cell["bytes"] is None else _tensor(cell["bytes"])
    try:
        image = decode_image(source, mode="RGB", apply_exif_orientation=upright)
    except (RuntimeError, ValueError) as error:
        if "Unsupported image file" in str(error):
            return _read_with_pillow(cell, name, upright)
        raise _undecodable(name, error) from None
    if image.dtype != torch.uint8:  # 16-bit PNG
        image = F.to_dtype(image, torch.uint8, scale=True)
    return image[0] if image.ndim == 4 else image  # the first frame of an animation


def read_mask(cell: Cell | None, name: str) -> np.ndarray:
    """Decode a mask without interpreting it.

    Args:
        cell: path or bytes of an image of ids or colours, of any kind that Pillow opens.
        name: what a message calls the mask.

    Returns:
        uint8 array (H, W) of the stored ids (of a palette image: the ids, not the colours), or
        (H, W, 3) of colours.

    Raises:
        SampleError: the mask is missing, can't be decoded completely, or holds values that are not
            from 0 to 255.
    """
    _refuse_none(cell, name)
    try:
        with Image.open(_file(cell)) as image:
            if image.mode not in MASK_MODES:
                return np.asarray(image.convert("RGB"))
            values = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many types for broken files
        raise _undecodable(name, error) from None
    values = values[..., 0] if values.ndim == 3 else values
    if values.dtype.kind == "f":
        raise SampleError(f"{name} holds fractions: save it as a mask of whole class ids.")
    if values.dtype.itemsize > 1:
        for value in (values.min(initial=0), values.max(initial=0)):
            if not 0 <= value <= 255:
                raise SampleError(
                    f"{name} holds the value {value}, but class ids go from 0 to 255: use a mask "
                    "of class ids, not of instances or depths."
                )
    return values.astype(np.uint8, copy=False)


def _refuse_none(cell: Cell | None, name: str) -> None:
    if not cell or (cell["path"] is None and cell["bytes"] is None):
        raise SampleError(f"{name} is missing: add it, or remove the sample.")


def _read_with_pillow(cell: Cell, name: str, upright: bool) -> torch.Tensor:
    try:
        with Image.open(_file(cell)) as image:
            if image.mode.startswith("I;16"):  # convert would clip values up to 65535 to 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = ImageOps.exif_transpose(image) if upright else image
            array = np.array(image.convert("RGB"))
    except Exception as error:
        raise _undecodable(name, error) from None
    return torch.from_numpy(array).permute(2, 0, 1)


def _file(cell: Cell) -> str | io.BytesIO:
    return cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def _tensor(data: bytes) -> torch.Tensor:
    # A bytearray, because torch warns about tensors over read-only memory.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _undecodable(name: str, error: Exception) -> SampleError:
    if "No such file" in str(error):
        return SampleError(f"{name} does not exist: restore it, or remove it from the data set.")
    # torchvision puts the place in its C++ source before the reason; Pillow names an object.
    reason = re.sub(r"^.*\.cpp:\d+, ", "", str(error).partition("\n")[0])
    reason = re.sub(r"cannot identify image file.*", "it is not an image", reason).rstrip(".")
    return SampleError(f"{name} can't be decoded ({reason}): replace it or remove it.")
