"""Text files of users: plain text, YAML and JSON, read or refused with the file's name."""

import json
from pathlib import Path
from typing import Any

import yaml

from errors import UserError

MOST_DEPTH = 50  # of lists and mappings in a YAML file


def read_text(file: Path) -> str:
    """The contents of a text file in UTF-8.

    Raises:
        UserError: it can't be read, or isn't UTF-8.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise OSError(0, "it is no regular file")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(
            f"{file} can't be read ({problem}): restore it, or save it as text in UTF-8."
        ) from None


def read_json(file: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        UserError: it can't be read, or isn't JSON.
    """
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{file} is not valid JSON ({problem}): restore the file.") from None


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
