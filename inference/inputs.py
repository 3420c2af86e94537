"""Inputs of predict.py, and what they and their results are called."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

# What ends a line, can't be in XML, or is taken off at the ends of a line.
NOT_IN_A_LINE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]|^\\s|\\s$"


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: what tables and messages call it; distinct, and of characters that can be written.
        out: the path of what is written for it, below a folder and without suffix; distinct.
        path: of its file; None for a data set's sample, and a camera's number.
        kind: image, video or camera.
    """

    name: str
    out: str
    path: str | None
    kind: str


def readable(text: str) -> str:
    """A text whose bytes that aren't UTF-8 are written as %FF, since it could not be printed."""
    return re.sub("[\ud800-\udfff]", lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def keeping(inputs: Sequence[Input], known: Mapping[str, str]) -> list[Input]:
    """Inputs of which some have a place already, so that none is written over another's files.

    Args:
        inputs: in their order.
        known: the ``out`` of those that are done, by name.
    """
    taken, kept = set(known.values()), []
    for each in inputs:
        out = known.get(each.name) or _free(each.out, taken)
        taken.add(out)
        kept.append(replace(each, out=out))
    return kept


def out_names(names: Sequence[str]) -> list[str]:
    """Where what is made of each input goes: its name without suffix, or with it where two agree.

    The folder that holds all inputs is left out. Names that lead out of a folder lead into it. What
    a list of a name per line couldn't hold becomes "_". No two are the same.
    """
    plain = [_inside(name) for name in names]
    common = 0
    while len({path.parts[: common + 1] for path in plain}) == 1 and all(
        len(path.parts) > common + 1 for path in plain
    ):
        common += 1
    plain = [PurePosixPath(*path.parts[common:]) for path in plain]
    stems = Counter(str(path.with_suffix("")) for path in plain)
    outs: list[str] = []
    taken: set[str] = set()
    for path in plain:
        stem = str(path.with_suffix(""))
        base = re.sub(NOT_IN_A_LINE, "_", stem if stems[stem] == 1 else str(path))
        out = _free(base, taken)
        taken.add(out)
        outs.append(out)
    return outs


def _free(base: str, taken: set[str]) -> str:
    out, number = base, 2
    while out in taken:
        out, number = f"{base}-{number}", number + 1
    return out


def _inside(name: str) -> PurePosixPath:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return PurePosixPath(*[part for part in parts if part not in ("/", "..")] or ["input"])
