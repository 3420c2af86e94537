"""From the values stored in a mask file to class ids 0..n-1, with 255 for ignored pixels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

IGNORE = 255
UNKNOWN = 254  # in a lookup table: a value that the data set doesn't define
MAX_CLASSES = 254

Color = tuple[int, int, int]
Palette = Sequence[Color]


class UnknownValueError(ValueError):
    """A mask holds a value or a colour that the data set doesn't define; the message says which."""


@dataclass(frozen=True)
class MaskRule:
    """What the values of a data set's masks mean.

    Attributes:
        lut: 256 bytes; entry v is the class id of stored value v, or IGNORE, or UNKNOWN.
        colors: class id (or IGNORE) of each colour of colour-coded masks.
    """

    lut: bytes
    colors: tuple[tuple[Color, int], ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ids = {*self.lut, *(class_id for _, class_id in self.colors)}
        return len(ids - {IGNORE, UNKNOWN})

    @classmethod
    def of_ids(cls, ids: Mapping[int, int], colors: Sequence[tuple[Color, int]] = ()) -> "MaskRule":
        """The rule of a mapping.

        Args:
            ids: class id or IGNORE of each stored value; 255 is ignored unless it is listed.
            colors: the same for each colour of colour-coded masks.
        """
        ids = {IGNORE: IGNORE, **ids}
        return cls(_table(ids), tuple(colors))

    def __call__(self, stored: np.ndarray, palette: Palette | None = None) -> torch.Tensor:
        """Map stored values to class ids.

        Args:
            stored: uint8 (H, W) of ids, or (H, W, 3) of colours (or of ids, three times the same).
            palette: the colour of each stored id, where the file has one.

        Returns:
            uint8 tensor (H, W).

        Raises:
            UnknownValueError: a stored value is not in the rule.
        """
        if stored.ndim == 3 and self.colors:
            return self._map_colors(stored)
        if stored.ndim == 3:
            if (stored != stored[..., :1]).any():
                raise UnknownValueError("colours where class ids are expected")
            stored = stored[..., 0]
        lut = self.lut if palette is None else self._lut_of(palette, np.unique(stored).tolist())
        mapped = bytearray(stored.tobytes()).translate(lut)  # ten times as fast as indexing
        if UNKNOWN in mapped:
            value = stored.reshape(-1)[mapped.index(UNKNOWN)]
            raise UnknownValueError(f"the value {value}")
        return torch.frombuffer(mapped, dtype=torch.uint8).reshape(stored.shape)

    def _lut_of(self, palette: Palette, used: Sequence[int]) -> bytes:
        """The lookup table of a mask with a palette, of which some ids are used.

        The colours count where the classes have colours, since every tool that optimises files
        numbers a palette anew. So do greys, unless they only show the ids: each by itself, or
        spread evenly from black to white.
        """
        shown = {value: palette[value] for value in used if value < len(palette)}
        known = dict(self.colors)
        if _are_greys(palette):
            greys = {value: color[0] for value, color in shown.items()}
            last = max(1, len(palette) - 1)
            show_ids = all(grey in (v, round(255 * v / last)) for v, grey in greys.items())
            if show_ids and not (known and _are_greys(known)):
                return self.lut
            return _table({value: self.lut[grey] for value, grey in greys.items()})
        if not known:
            return self.lut
        ids = {value: known.get(color, UNKNOWN) for value, color in shown.items()}
        if ids.get(IGNORE) == UNKNOWN:
            ids[IGNORE] = IGNORE
        strange = next((v for v, class_id in ids.items() if class_id == UNKNOWN), None)
        if strange is not None:
            raise UnknownValueError(f"the colour {shown[strange]} in its palette")
        return _table(ids)

    def _map_colors(self, stored: np.ndarray) -> torch.Tensor:
        mapped = self._color_table[_code(stored)]
        if (mapped == UNKNOWN).any():
            row, column = np.argwhere(mapped == UNKNOWN)[0]
            color = tuple(stored[row, column].tolist())
            raise UnknownValueError(f"the colour {color}")
        return torch.from_numpy(mapped)

    @cached_property
    def _color_table(self) -> np.ndarray:
        # Takes 16 MB, but a pixel is one look-up instead of a search among the colours.
        table = np.full(1 << 24, UNKNOWN, dtype=np.uint8)
        for color, class_id in self.colors:
            table[_code(np.array(color, dtype=np.uint8))] = class_id
        return table

    def __getstate__(self) -> dict:
        # Without the table, which every process makes for itself.
        return {"lut": self.lut, "colors": self.colors}


def _are_greys(colors: Iterable[Color]) -> bool:
    return all(len(set(color)) == 1 for color in colors)


def _table(ids: Mapping[int, int]) -> bytes:
    """256 bytes: the class id of each stored value, UNKNOWN where there is none."""
    return bytes(ids.get(value, UNKNOWN) for value in range(256))


def _code(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def default_colors(count: int) -> list[Color]:
    """Distinct colours for classes 0..count-1: the colour map of Pascal VOC, which begins black.

    The bits of a class number, lowest first, go to red, green and blue in turn, each time to the
    highest bit of the channel that is still free.
    """
    colors = []
    for number in range(count):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        colors.append(tuple(channels))
    return colors


def looks_smoothed(stored: np.ndarray) -> bool:
    """Whether a mask looks as if it had been resized with smoothing, or compressed with losses.

    Then it holds many values, most of which nowhere fill a square of 2x2 pixels; a class does.

    Args:
        stored: uint8 (H, W) or (H, W, 3).
    """
    values = stored if stored.ndim == 2 else _code(stored)
    distinct = np.unique(values)
    if len(distinct) < 8:
        return False
    corner = values[:-1, :-1]
    same = (corner == values[1:, :-1]) & (corner == values[:-1, 1:]) & (corner == values[1:, 1:])
    return 2 * len(np.unique(corner[same])) < len(distinct)
