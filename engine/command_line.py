"""From the command line and recipe files to the options, and ``--help``."""

import contextlib
import dataclasses
import difflib
import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from engine.about import HOLD_OUT, data_as_in_training, read_about
from engine.fields import GROUPS, Options, default_of
from engine.options import FILES
from errors import UserError
from models.find_weights import NAMED_WEIGHTS, find_weights

if TYPE_CHECKING:
    import jsonargparse

Given = TypeVar("Given", bound=Options)

HELP_WIDTH, HELP_COLUMN = 100, 30


def parse(options_class: type[Given], description: str, args: list[str] | None = None) -> Given:
    """Read the options from the command line, over those of ``--config`` files.

    ``--help`` prints the options in their groups and ends the process.

    Args:
        options_class: the script's dataclass; its fields become flags with underscores, booleans
            ``--name`` and ``--no_name``.
        description: what ``--help`` begins with.
        args: the command line (default: ``sys.argv[1:]``).

    Raises:
        UserError: an unknown option, a value of the wrong type or out of range, a missing or
            malformed file.
    """
    words = sys.argv[1:] if args is None else args
    script = os.path.basename(sys.argv[0])
    if "--help" in words or "-h" in words:
        print(help_text(options_class, description, script))
        sys.exit(0)
    parser = _parser(options_class, script)
    parser.add_argument("--config", action="config")
    words = _join_lists(words, options_class)
    _check_config_files(words, options_class)
    with _in_one_sentence(options_class, script):
        values = _with_those_of_weights(parser, words, options_class)
    values.pop("config", None)
    options = options_class(**vars(values))
    for name in (*FILES, "output"):  # a shell leaves the ~ of --output_dir=~/runs as it is
        if isinstance(value := getattr(options, name, None), str):
            setattr(options, name, os.path.expanduser(value))
    options.check()
    return options


def parse_values(
    options_class: type[Options], texts: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Read some of a script's options, each as its flag takes it, and lists also as ``1,2``.

    Args:
        options_class: the script's dataclass.
        texts: by the option's name.
        where: they were given, for messages.

    Raises:
        UserError: a value of the wrong type.
    """
    types_of, words = get_type_hints(options_class), []
    for name, text in texts.items():
        several = "," in text and not text.startswith("[") and "list[" in str(types_of[name])
        words += [f"--{name}", *text.split(",")] if several else [f"--{name}={text}"]
    parser = _parser(options_class, where)
    with _in_one_sentence(options_class, where):
        return vars(parser.parse_args(_join_lists(words, options_class), defaults=False))


@contextlib.contextmanager
def _in_one_sentence(options_class: type, where: str) -> Iterator[None]:
    """A context in which what the parser raises becomes a UserError."""
    import jsonargparse
    import yaml

    try:
        yield
    except (
        jsonargparse.ArgumentError,
        yaml.YAMLError,
        ValueError,
        TypeError,
        OverflowError,
    ) as error:
        raise UserError(_explain(error, options_class, where)) from None


def _with_those_of_weights(
    parser: "jsonargparse.ArgumentParser", words: list[str], options_class: type[Options]
) -> Any:
    """The parsed values; what is left out is taken from the file that ``--weights`` names.

    Without ``--model`` these are the model and the other options of it and its evaluation. With
    ``--eval_only`` they are also those that say which samples training held out.
    """
    values = parser.parse_args(words)
    weights = getattr(values, "weights", "none")
    if not options_class.task or weights in NAMED_WEIGHTS:
        return values
    about = read_about(find_weights(weights))
    if about is None:
        return values
    if about.task != options_class.task:
        if values.eval_only:
            raise UserError(f"{weights} was trained for {about.task}: use its own script.")
        return values
    usual = {field.name: default_of(field) for field in dataclasses.fields(options_class)}
    said = vars(parser.parse_args(words, defaults=False))
    named = {}
    if "model" not in said:
        named = {name: value for name, value in about.options.items() if name in usual}
    for name, value in named.items():  # train_pipeline.py has one number for a square
        if isinstance(usual[name], int) and isinstance(value, list):
            named[name] = value[0]
    data = data_as_in_training(about, values.dataset, usual, said) if values.eval_only else {}
    named |= data
    parser.set_defaults(named)
    shown = " ".join(f"--{k} {_shown(v)}" for k, v in named.items() if v is not None)
    if shown:
        print(f"As {weights} says, where nothing else is given: {shown}")
    for name in data.keys() & set(HOLD_OUT):
        print(f"The validation split of other data is scored with --{name} null.")
    return parser.parse_args(words)


def help_text(options_class: type[Options], description: str, script: str) -> str:
    """What ``--help`` prints: every option with its choices, meaning and default, by group."""
    width = min(HELP_WIDTH, shutil.get_terminal_size((HELP_WIDTH, 24)).columns)
    lines = [f"usage: {script} [--option value ...]", "", description.strip()]
    lines += ["", "files", *_entry("--config FILE", "options as YAML; flags override it", width)]
    types_of = get_type_hints(options_class)
    for group in GROUPS:
        fields = [f for f in dataclasses.fields(options_class) if f.metadata["group"] == group]
        lines += ["", group] if fields else []
        for field in fields:
            default, datasets = default_of(field), field.metadata["datasets"]
            text = f"{', '.join(datasets)}: " if datasets else ""
            text += field.metadata["help"]
            if default not in (None, False, "", []):
                text += f" [{_shown(default)}]"
            flag = f"--{'[no_]' if default is True else ''}{field.name}"
            values = _values(types_of[field.name], field.metadata["length"] or 1)
            lines += _entry(f"{flag} {values}".rstrip(), text, width)
    return "\n".join(lines)


def _entry(left: str, text: str, width: int) -> list[str]:
    """A flag and its meaning, in two columns, or below each other where the flag is long."""
    lines = [" " * HELP_COLUMN + line for line in textwrap.wrap(text, width - HELP_COLUMN)]
    if len(left) + 4 > HELP_COLUMN:
        return [f"  {left}", *lines]
    return [f"  {left}".ljust(HELP_COLUMN) + lines[0].lstrip(), *lines[1:]]


def _values(kind: Any, length: int) -> str:
    """What a flag takes: its choices, or the kind of value, once per entry of a list."""
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind) if choice != "")
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [part for part in get_args(kind) if part is not type(None)]
        values = [_values(part, length) for part in kinds]
        if "" in values:  # a flag that may have a value
            return f"[{'|'.join(value for value in values if value)}]"
        # A list of texts says that it may be one.
        return "|".join(v for v in values if f"{v} ..." not in values)
    if get_origin(kind) is list:
        (entry,) = get_args(kind)
        return " ".join([_values(entry, 1)] * length) + (" ..." if length == 1 else "")
    return {bool: "", int: "N", float: "X", str: "TEXT"}[kind]


def _shown(default: Any) -> str:
    if default is True:
        return "on"
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def _join_lists(words: list[str], options_class: type) -> list[str]:
    """``--crop_size 96 96`` as ``--crop_size=[96,96]``; shells want the brackets quoted."""
    types_of = {f"--{name}": str(kind) for name, kind in get_type_hints(options_class).items()}
    lists = {flag for flag, kind in types_of.items() if "list[" in kind}
    texts = {flag for flag, kind in types_of.items() if "list[str]" in kind}
    only_texts = {flag for flag, kind in types_of.items() if kind == "list[str]"}
    joined: list[str] = []
    while words:
        word, *words = words
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        if word in lists and len(values) > (word not in only_texts):
            words = words[len(values) :]
            if word in texts:  # quoted, since texts may look like numbers and hold any character
                values = [json.dumps(value) for value in values]
            word = f"{word}=[{','.join(values)}]"
        joined.append(word)
    return joined


def _check_config_files(words: list[str], options_class: type) -> None:
    """Refuse what can't be a file of options, naming it; jsonargparse names only its contents."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or following
            if path == "":
                raise UserError("--config is empty, perhaps an unset variable of the shell.")
            try:
                with open(path, encoding="utf-8") as file:
                    _check_keys(path, file.read(), options_class)
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise UserError(f"--config {path} can't be read: {reason}.") from None


def _check_keys(path: str, text: str, options_class: type) -> None:
    """Refuse an option given twice, of which YAML takes the last one silently, or without a value.

    Raises:
        UserError: names the file and the option.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return  # the parser says what is wrong
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    keys = [key.value for key, _ in pairs]
    needed = {f.name for f in dataclasses.fields(options_class) if default_of(f) is not None}
    for number, (key, (_, value)) in enumerate(zip(keys, pairs, strict=True)):
        if key in keys[:number]:
            raise UserError(f"--config {path} gives {key} twice; leave one of them.")
        if key in needed and value.tag == "tag:yaml.org,2002:null":
            raise UserError(f"--config {path} gives {key} no value; give one, or leave it out.")


def _parser(options_class: type, name: str) -> "jsonargparse.ArgumentParser":
    """What takes the flags of a dataclass of options."""
    import jsonargparse  # here, since it takes longer than all of --help
    import yaml

    # Lists are tried as JSON first, which holds any file's name; YAML refuses some characters.
    loader = jsonargparse.get_loader("yaml")
    jsonargparse.set_loader("yaml", loader, (yaml.YAMLError,), json_superset=False)
    parser = jsonargparse.ArgumentParser(prog=name, exit_on_error=False, default_env=False)
    types_of = get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        settings: dict[str, Any] = {"default": default_of(field)}
        if types_of[field.name] is bool:
            settings["action"] = jsonargparse.ActionYesNo(yes_prefix="", no_prefix="no_")
            settings["nargs"] = "?"
        else:
            settings["type"] = types_of[field.name]
            if types_of[field.name] == bool | str:  # a flag that may have a value
                settings |= {"nargs": "?", "const": True}
        parser.add_argument(f"--{field.name}", **settings)
    return parser


def _kind(wanted: str) -> str:
    """What the parser expects, in words."""
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", wanted):
        return f"one of {choices[1]}".replace("'", "")
    kinds = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}
    return kinds.get(wanted.removeprefix("<class '").removesuffix("'>"), wanted)


def _explain(error: Exception, options_class: type, script: str) -> str:
    """The parser's message as one sentence; names similar options where one is unknown."""
    message = " ".join(str(error).split())
    names = [field.name for field in dataclasses.fields(options_class)] + ["config"]
    for word in message.replace('"', " ").replace("'", " ").replace(":", " ").split():
        key = word.lstrip("-").split("=")[0].rstrip(".,")
        unknown = word.startswith("--") or "nrecognized" in message or "not accept" in message
        if unknown and key not in names and key.isidentifier():
            near = difflib.get_close_matches(key, names, n=3)
            if near or word.startswith("--"):
                hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else ""
                return f"{script}: unknown option {key!r}; {hint or 'see --help.'}"
    if found := re.search(r'"(\w+)": Expected a (.+)\. Got value: (.*)', message):
        name, wanted, value = found.groups()
        return f"{script}: --{name} is {value}; give {_kind(wanted)}."
    if found := re.search(r"argument --(\w+)/.*: invalid .* value: (.*)", message):
        return f"{script}: --{found[1]} is {found[2]}; give true or false."
    if key := re.search(r'"(\w+)": Does not validate', message):
        return (
            f"{script}: {key[1]} has a value of another type than --help says; in a file, names "
            "that look like numbers need quotes."
        )
    return f"{script}: {message}"
