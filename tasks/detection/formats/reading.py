"""Reading what users write: whatever is wrong with it becomes a sentence that names its file."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.class_files import read_class_names, read_numbered_names
from data.faults import Faults
from data.numbers import whole
from errors import UserError
from tasks.detection.options import DetectionOptions

# What reading a record raises where its form is not the expected one.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
MOST_PIXELS = 2**31 - 1  # of a side, as the table of rows stores it
NUMBER = re.compile(r"-?(0|[1-9]\d{0,18})(\.0*)?")
WORDS = {"true": 1, "false": 0, "yes": 1, "unspecified": 0, "": 0}


def given_class_names(options: DetectionOptions, numbered: bool = False) -> list[str] | None:
    """The names that ``--class_names`` lists or whose file it names; None where it isn't given.

    Args:
        options: class_names.
        numbered: whether the data refer to classes by number, so that the file's numbers count and
            not only their order.

    Raises:
        UserError: there is no such file, or the names are none or not distinct.
    """
    names = options.class_names
    if isinstance(names, str):
        path = Path(names).expanduser()
        names = read_numbered_names(path) if numbered else list(read_class_names(path).values())
    if names is not None and len(set(names)) < max(1, len(names)):
        raise UserError("--class_names must hold at least one name, and each name only once.")
    return names


def read_each(
    where: object,
    what: str,
    records: Iterable[Any],
    read: Callable[[Any], Any],
    faults: Faults,
) -> Iterator[Any]:
    """What ``read`` makes of each record.

    Args:
        where: the source as a message names it, such as its file.
        what: a record as a message names it.
        records: as stored.
        read: raises one of MALFORMED for a record that it can't read.
        faults: gets the records that can't be read, each shown with the reason.

    Yields:
        The results of the others, in order.
    """
    for number, record in enumerate(records, start=1):
        try:
            result = read(record)
        except MALFORMED as error:
            faults.add(
                where,
                f"{where} has the {what} {shown(record)}, which can't be used ({reason(error)}): "
                "correct or remove it.",
                f"{what} {number}",
            )
            continue
        yield result


def shown(record: Any) -> str:
    """A record as a message can show it, in a line: by its id, if it has one."""
    number = record.get("id") if isinstance(record, dict) else None
    if isinstance(number, int | str):
        return f"with the id {' '.join(f'{number!s:.40}'.split())}"
    try:
        return f"{' '.join(f'{record!s:.200}'.split()):.80}"
    except RecursionError:
        return "that is nested deeply"


def reason(error: Exception) -> str:
    """What is wrong with a malformed record, as a part of a sentence."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split()).replace(". ", "; ").rstrip(".")


def identity(value: Any) -> int | str:
    """The number or text by which records refer to each other; "7" and 7.0 are 7, "007" a text."""
    if isinstance(value, str):
        return whole(value) if NUMBER.fullmatch(value) else text(value)
    try:
        return whole(value)
    except ValueError:
        raise ValueError(f"{value!s:.40} is no id") from None


def text(value: Any) -> str:
    """A name."""
    if not isinstance(value, str):
        raise ValueError(f"{value!s:.40} is no text")
    value.encode()  # half of a character is no text
    if "\0" in value:
        raise ValueError("it holds a zero byte")
    return value


def pixels(value: Any) -> int:
    """An image's height or width; 0 where it is not given."""
    length = float(value or 0)
    if not 0 <= length <= MOST_PIXELS:
        raise ValueError(f"{value!s:.40} is no number of pixels")
    return int(length)


def flag(value: Any) -> bool:
    """Yes or no, stored as a number or a word."""
    if isinstance(value, str):
        value = WORDS.get(value.strip().lower(), value)
    return bool(float(value or 0))


def area(value: Any) -> float | None:
    """An object's area in pixels; None where it is not given."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"the area {value!s:.40} is no positive number")
    return float(value)


def box(value: Any) -> list[float]:
    """The four numbers of a box, which may be infinite or NaN."""
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"the box {value!s:.60} is not four numbers")
    if not {*map(type, value)} <= {int, float}:
        raise ValueError(f"the box {value!s:.60} holds something else than numbers")
    return [float(number) for number in value]
