"""Files in which users name their classes, with colours where masks are coloured."""

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

from data.masks import Color
from data.numbers import whole
from data.textfiles import read_json, read_text, read_yaml
from errors import UserError

MOST_CLASSES = 10_000  # a higher number is a mistake
GAP = "void"  # the name of a number that the file leaves out: no class

# The words of a first line that names columns: those of names, one of which there must be, of
# numbers, and of colours.
NAMES = {"name", "names", "class", "classes", "class name", "class_name"}
NAMES_OR_CLASSES = {"label", "labels", "category", "categories"}  # alone, they may be either
NUMBERS = {"id", "index", "class id", "class_id", "value", "pixel value", "pixel_value"}
COLORS = {"color", "colour", "rgb", "hex", "color_rgb"}
TRIPLES = ({"r", "g", "b"}, {"red", "green", "blue"})
COLUMNS = {*NAMES, *NAMES_OR_CLASSES, *NUMBERS, *COLORS, *TRIPLES[0], *TRIPLES[1]}
COLUMNS |= {"parts", "actions"}


class _Line(NamedTuple):
    """A class as a line gives it: its number and colour may be missing."""

    number: int | None
    name: str
    color: Color | None
    marked: bool  # whether a separator sets the number apart: "3: cat", and not "3 cat"


def read_class_file(path: Path) -> tuple[list[str], list[Color | None] | None]:
    """Read class names, and colours if there are any.

    A text or CSV file has one class per line: a name, perhaps with a colour, ``r g b`` or
    ``#rrggbb``, before or after it, and perhaps with a number in front, ``3: cat``. Blanks, commas,
    semicolons or tabs stand between them. A first line of column names and lines that begin with
    ``#`` are left out. CVAT's ``label:r,g,b:parts:actions`` is read, too. JSON and YAML are a list
    of names, an object ``{"0": name}`` or ``{name: 0}``, either of them perhaps in an entry
    ``names``, or a list of objects with name, and perhaps id and color.

    Returns:
        The names in the order of their numbers, "void" for a number that is left out; and the
        colour of each, or None. A number that is left out has no colour.

    Raises:
        UserError: the file is missing or has another form; the message shows the line.
    """
    lines = _read(path)
    gap = _Line(None, GAP, None, False)
    filled = [lines.get(number, gap) for number in range(max(lines) + 1)]
    colors = [line.color for line in filled]
    return [line.name for line in filled], colors if any(colors) else None


def read_class_names(path: Path) -> dict[int, str]:
    """The names that a class file gives, by number, in order; see ``read_class_file``.

    Raises:
        UserError: the file is missing or has another form; the message shows the line.
    """
    return {number: line.name for number, line in _read(path).items()}


def read_numbered_names(path: Path) -> list[str]:
    """The names that a class file gives to the numbers 0..n-1, for data that refer to numbers.

    Raises:
        UserError: a number is left out, as where they begin at 1; or see ``read_class_file``.
    """
    names = read_class_names(path)
    missing = next((number for number in range(len(names)) if number not in names), None)
    if missing is not None:
        raise UserError(
            f"{path} names the classes {', '.join(map(str, list(names)[:3]))}, ... but not "
            f"{missing}: number them from 0, as the data do, and leave none out."
        )
    return list(names.values())


def _read(path: Path) -> dict[int, _Line]:
    """The classes of a file by number, in order."""
    if not path.is_file():
        raise UserError(f"There is no class file {path}: write one class name per line into it.")
    suffix = path.suffix.lower()
    if suffix in (".json", ".yaml", ".yml"):
        content = read_json(path) if suffix == ".json" else read_yaml(path)
        lines = _entries(path, content)
    else:
        lines = _lines(path, read_text(path))
    if not lines:
        raise UserError(f"The class file {path} is empty: write one class name per line into it.")
    if len({line.color is None for line in lines}) != 1:
        raise UserError(f"{path} must give a colour (r g b) to every class or to none.")
    numbers = [line.number for line in lines]
    if None not in numbers:
        return _by_number(path, lines)
    if any(number is not None for number in numbers):
        name = lines[numbers.index(None)].name
        raise UserError(
            f"{path} must give a number to every class or to none, and {name} has none."
        )
    return dict(enumerate(lines))


def _by_number(path: Path, lines: list[_Line]) -> dict[int, _Line]:
    numbered: dict[int, _Line] = {}
    for line in lines:
        if not 0 <= line.number < MOST_CLASSES:
            raise UserError(
                f"{path} gives the class {line.name} the number {line.number}, but numbers go from "
                f"0 to {MOST_CLASSES - 1}: correct it."
            )
        if line.number in numbered:
            raise UserError(
                f"{path} gives the number {line.number} to {numbered[line.number].name} and to "
                f"{line.name}: correct one."
            )
        numbered[line.number] = line
    return dict(sorted(numbered.items()))


def _lines(path: Path, text: str) -> list[_Line]:
    """The classes of a text or CSV file; numbers count where every line has one."""
    rows = [
        (place, line.strip())
        for place, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not re.match(r"\s*#(?![0-9a-fA-F]{6}\b)", line)
    ]
    if rows and rows[0][1].lower() in NAMES_OR_CLASSES:
        raise UserError(
            f"Line {rows[0][0]} of {path} is '{rows[0][1]}', which may be a heading or a class: "
            'put a # in front of a heading; write classes as JSON, ["label", ...].'
        )
    if rows and _is_header(rows[0][1]):
        rows = rows[1:]
    lines = []
    for place, row in rows:
        line = _line(row)
        if not line.name:
            raise UserError(
                f"Line {place} of {path} is '{row:.60}', which names no class: write a name, "
                "perhaps with a colour (r g b), or put # in front."
            )
        lines.append((row, line))
    numbers = [line.number for _, line in lines]
    known = None not in numbers
    counted = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
    if known and (counted or all(line.marked for _, line in lines)):
        return [line for _, line in lines]
    # A number in front of some names only belongs to them: "3 series".
    return [_line(row, numbered=False) for row, _ in lines]


def _is_header(line: str) -> bool:
    """Whether a line names columns: "name", or several of which one is of names.

    Between blanks there must be a number or a whole colour, too: "red label" is a class.
    """
    fields = {field.strip().lower() for field in re.split(r"[,;:\t]", line) if field.strip()}
    if len(fields) == 1 and not fields <= NAMES:
        fields = set(line.lower().split())
        if not (fields & (NUMBERS | COLORS) or any(triple <= fields for triple in TRIPLES)):
            return False
    return fields <= COLUMNS and bool(fields & (NAMES | NAMES_OR_CLASSES))


def _line(row: str, numbered: bool = True) -> _Line:
    cvat = re.fullmatch(r"([^:]+):(\d+,\d+,\d+)?:[^:]*:[^:]*", row)
    if cvat:
        color = tuple(map(int, cvat[2].split(","))) if cvat[2] else None
        return _Line(None, cvat[1].strip(), color, False)
    front = re.match(r"[\"']?(\d{1,12})[\"']?\s*([:;,=\t]|\s)\s*(?=\S)", row)
    color, name = _color_and_name(_fields(row))
    if not front or not numbered:
        return _Line(None, name, color, False)
    # "r g b name" has no number; "0 name r g b" and "0 r g b name" have one.
    inner_color, inner_name = _color_and_name(_fields(row[front.end() :]))
    if color and not (inner_color and not inner_name[:1].isdecimal()):
        return _Line(None, name, color, False)
    return _Line(int(front[1]), inner_name, inner_color, not front[2].isspace() or front[2] == "\t")


def _fields(row: str) -> list[str]:
    separator = next((s for s in ",;\t" if s in row), None)
    if separator is None:
        return row.split()
    fields = [field.strip() for field in next(csv.reader([row], delimiter=separator))]
    return [part for field in fields for part in _parts(field)]


def _parts(field: str) -> list[str]:
    """A field of three numbers as three fields; any other as it is."""
    return field.split() if re.fullmatch(r"\d+\s+\d+\s+\d+", field) else [field]


def _color_and_name(fields: list[str]) -> tuple[Color | None, str]:
    """The colour at the end or the beginning of a line's fields, and the name."""
    for count in (3, 1):
        for color, name in ((fields[-count:], fields[:-count]), (fields[:count], fields[count:])):
            parsed = _color(color)
            if name and parsed:
                return parsed, " ".join(name)
    return None, " ".join(fields)


def _color(fields: list[str]) -> Color | None:
    if len(fields) == 1 and re.fullmatch(r"#[0-9a-fA-F]{6}", fields[0]):
        return tuple(bytes.fromhex(fields[0][1:]))
    if len(fields) == 3 and all(value.isdecimal() and int(value) < 256 for value in fields):
        return tuple(int(value) for value in fields)
    return None


def _entries(path: Path, content: Any) -> list[_Line]:
    """The classes of a JSON or YAML file."""
    if isinstance(content, dict) and isinstance(content.get("names"), list | dict):
        content = content["names"]
    try:
        if isinstance(content, dict):
            pairs = list(content.items())
            if not all(_is_number(key) for key, _ in pairs):  # {name: number}
                pairs = [(value, key) for key, value in pairs]
            return [_Line(whole(number), _name(name), None, True) for number, name in pairs]
        if not isinstance(content, list):
            raise ValueError(f"it is a {type(content).__name__}")
        return [_entry(entry) for entry in content]
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(
            f"The class file {path} can't be read ({error}): it must be a list of names, or an "
            'object {"0": name, ...}.'
        ) from None


def _is_number(value: Any) -> bool:
    return str(value).isdecimal()


def _name(value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        raise ValueError(f"{value!s:.40} is no name")
    return str(value)


def _entry(entry: Any) -> _Line:
    """A name, or an object with a name and perhaps a number and a colour."""
    if not isinstance(entry, dict):
        return _Line(None, _name(entry), None, False)
    name = next((entry[key] for key in ("name", "label", "title", "class") if key in entry), None)
    number = next((entry[key] for key in ("id", "index") if key in entry), None)
    color = entry.get("color")
    fields = [str(value) for value in color] if isinstance(color, list) else [str(color)]
    if color is not None and _color(fields) is None:
        raise ValueError(f"{color!s:.40} is no colour")
    return _Line(None if number is None else whole(number), _name(name), _color(fields), True)
