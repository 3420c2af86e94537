"""How large images are, from the headers of their files; nothing is decoded."""

import io
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, NamedTuple

from PIL import Image

from data.folders import PICTURE_FORMATS

ORIENTATION = 0x0112  # EXIF tag; from 5 on, width and height change places
BATCH = 64  # headers that a thread reads in one go
QUICK = 1e-3  # seconds for a header that lies near

Size = tuple[int, int]  # height and width in pixels


class View(io.RawIOBase):
    """A file over bytes that lie somewhere else: only what is read of them is copied."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data, self.place = memoryview(data).cast("B"), 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """Any place of it can be read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: len(self.data)}[whence]
        self.place = max(0, start + offset)
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Copy what comes next."""
        part = self.data[self.place : self.place + len(buffer)]
        buffer[: len(part)] = part
        self.place += len(part)
        return len(part)


class Header(NamedTuple):
    """What a file's header says.

    Attributes:
        stored: (height, width) as stored; (0, 0) where it can't be read: the image is reported with
            its name when it is decoded.
        turned: whether the EXIF orientation says that it must be turned or mirrored.
        upright: (height, width) once it is turned.
    """

    stored: Size
    turned: bool
    upright: Size


UNREADABLE = Header((0, 0), False, (0, 0))


def read_header(image: str | dict[str, Any]) -> Header:
    """The header of an image.

    Args:
        image: path, or a cell ``{"path", "bytes"}``, whose bytes may be any buffer.
    """
    cell = image if isinstance(image, dict) else {"path": image, "bytes": None}
    data = cell["bytes"]
    if data is None and not os.path.isfile(cell["path"] or ""):
        return UNREADABLE  # a pipe would be waited for
    try:
        file = cell["path"] if data is None else io.BufferedReader(View(data))
        with Image.open(file, formats=PICTURE_FORMATS) as opened:
            width, height = opened.size
            orientation = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types for broken files
        return UNREADABLE
    turned = orientation in range(2, 9)
    upright = (width, height) if turned and orientation >= 5 else (height, width)
    return Header((height, width), turned, upright)


def read_headers(images: Iterable[str | dict[str, Any]]) -> Iterator[Header]:
    """The headers of many images, in order; by threads where the disk is far away.

    Python runs one thread at a time: where nothing is waited for, several take twice as long.
    """
    rest = iter(images)
    groups = iter(lambda: list(islice(rest, BATCH)), [])
    for group in groups:
        start = time.perf_counter()
        headers = _read_group(group)
        is_far = time.perf_counter() - start > QUICK * len(group)
        yield from headers
        if is_far:
            break
    with ThreadPoolExecutor(8) as pool:
        yield from chain.from_iterable(pool.map(_read_group, groups))


def _read_group(images: list[str | dict[str, Any]]) -> list[Header]:
    return [read_header(image) for image in images]
