"""The tasks by name, each imported when it is asked for."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any

from engine.command_line import parse_values
from errors import UserError

# Of each task, the class of its options and that of its inference.
TASKS = {
    "segmentation": ("SegmentationOptions", "SegmentationInference"),
    "detection": ("DetectionOptions", "DetectionInference"),
    "video": ("VideoOptions", "VideoInference"),
    "classification": ("ClassificationOptions", "ClassificationInference"),
}


def options_class(task: str) -> type:
    """The options of a task's training script; imports nothing that is slow."""
    return getattr(importlib.import_module(f"tasks.{task}.options"), TASKS[task][0])


def inference_class(task: str) -> type:
    """A task's subclass of ``engine.inference.Inference``."""
    return getattr(importlib.import_module(f"tasks.{task}.inference"), TASKS[task][1])


def with_options(task: str, saved: dict[str, Any]) -> Any:
    """The options of a task's script: the saved ones, and for the rest the defaults."""
    known = options_class(task)
    return known(**{k: v for k, v in saved.items() if k in known.__dataclass_fields__})


def option_values(
    task: str, pairs: Sequence[str], flag: str, fits: Callable[[Field], bool]
) -> dict[str, Any]:
    """Entries ``name=value`` as options of a task's script, each read and checked as there.

    Args:
        task: whose script.
        pairs: the entries.
        flag: of predict.py that took them.
        fits: whether an option can be given so.

    Raises:
        UserError: an entry has another form, or there is no such option or value.
    """
    script, known = f"train_{task}.py", {each.name: each for each in fields(options_class(task))}
    taken = [name for name, each in known.items() if fits(each)]
    texts = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise UserError(f"--{flag} takes name=value, and not {pair!r}.")
        if name not in known:
            raise UserError(f"{script} has no option {name}; check --{flag}.")
        if name not in taken:
            raise UserError(f"--{flag} takes no {name}: of {script} it takes {', '.join(taken)}.")
        texts[name] = text
    return parse_values(options_class(task), texts, f"--{flag} (see {script} --help)")
