"""Text files of users: plain text, YAML and JSON, read or refused with the file's name."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from errors import UserError

# What msgspec raises; before 0.21 its own errors are no ValueError.
UNREAD = (msgspec.MsgspecError, ValueError, RecursionError)
MOST_DEPTH = 50  # of lists and mappings in a YAML file


def read_text(file: Path) -> str:
    """The contents of a text file in UTF-8.

    Raises:
        UserError: it can't be read, or isn't UTF-8.
    """
    try:
        return _read_bytes(file).decode()
    except ValueError:
        raise _unreadable(file, "it is not text in UTF-8") from None


def _read_bytes(file: Path) -> bytes:
    """The contents of a regular file, without the mark that some editors put before UTF-8."""
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise OSError(0, "it is no regular file")
        return file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:  # a ValueError for a zero byte in the name
        raise _unreadable(file, getattr(error, "strerror", None) or str(error)) from None


def _unreadable(file: Path, problem: str) -> UserError:
    return UserError(f"{file} can't be read ({problem}): restore it, or save it as text in UTF-8.")


def read_json(file: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UserError: it can't be read, or isn't JSON.
    """
    return _parse(file, read_text(file))


def _parse(file: Path, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{file} is not valid JSON ({problem}): restore the file.") from None


class JsonList:
    """A list in a JSON file, whose entries are parsed when they are looped over.

    Args:
        file: the file.
        entries: each one's part of it.
    """

    def __init__(self, file: Path, entries: list[msgspec.Raw]) -> None:
        self.file, self.entries = file, entries

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Any]:
        for entry in self.entries:
            try:
                value = msgspec.json.decode(entry)
            except UNREAD:  # json accepts numbers of any size
                value = _parse(self.file, bytes(entry))
            yield value


def read_json_lists(file: Path) -> Any:
    """The contents of a JSON file; the lists in a mapping become ``JsonList``, where that works.

    Parsed at once, a million objects take eight times the size of their file in memory.

    Raises:
        UserError: as ``read_json``.
    """
    data = _read_bytes(file)
    try:
        if not data.isascii():
            data.decode()  # msgspec doesn't look into what it leaves unparsed
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        return {name: _list_or_value(file, part) for name, part in parts.items()}
    except UNREAD:  # json accepts NaN, and says what is wrong
        return read_json(file)


def _list_or_value(file: Path, part: msgspec.Raw) -> Any:
    if memoryview(part)[:1] == b"[":
        return JsonList(file, msgspec.json.decode(part, type=list[msgspec.Raw]))
    return msgspec.json.decode(part)


def read_yaml(file: Path) -> Any:
    """The contents of a YAML file, every value a text as it is written.

    So ``yes``, ``1.0`` and ``2020-01-01`` stay texts. Anchors are refused: nine of them, each ten
    times the one before, would fill the memory. So is deep nesting, which takes quadratic time.

    Raises:
        UserError: it can't be read, isn't YAML, refers to an anchor or is nested too deeply.
    """
    text = read_text(file)
    try:
        depth = 0
        for event in yaml.parse(text, yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise UserError(
                    f"Line {line} of {file} refers to the anchor *{event.anchor}: write out what "
                    "it stands for."
                )
            if depth > MOST_DEPTH:
                raise ValueError("it is nested too deeply")
        return yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{file} is not valid YAML ({problem}): correct it.") from None
