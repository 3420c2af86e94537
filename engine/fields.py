"""How options are declared: dataclass fields with a group, a help text and a range.

Nothing here imports torch, so ``--help`` answers at once and a mistyped option is refused before
the slow imports begin.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from errors import UserError

# The groups of options in ``--help``, in this order.
GROUPS = (
    "data",
    "model",
    "normalisation",
    "batch and length",
    "optimisation",
    "augmentation",
    "evaluation and files",
    "weights",
    "input",
    "prediction",
    "output",
    "file",
)

LARGEST_INTEGER = 2**63  # what tensors and files hold

# Bounds of a probability or a share.
SHARE = {"at_least": 0, "at_most": 1}


def option(
    group: str,
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | list[float] | None = None,
    below: float | None = None,
    length: int | None = None,
    ascending: bool = False,
    resume: Literal["same", "free"] = "same",
    datasets: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its help text and its range.

    Args:
        group: one of GROUPS.
        default: the default value.
        help: one phrase for ``--help``.
        at_least: the smallest value, of every entry of a list.
        above: the value that every entry must exceed.
        at_most: the largest value, or that of each entry of a list.
        below: the value that every entry must stay below.
        length: the number of entries of a list.
        ascending: whether a list must be in ascending order.
        resume: "same" if a run can only be resumed with the same value, "free" if the value may
            change between the parts of a run.
        datasets: the values of ``--dataset`` that the option is for ("hub" stands for every data
            set of the hub). With another data set it would do nothing, and is refused. Empty: any.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    metadata = {
        "help": help,
        "group": group,
        "bounds": {words: bound for words, bound in bounds.items() if bound is not None},
        "length": length,
        "ascending": ascending,
        "resume": resume,
        "datasets": datasets,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


(
    data_option,
    model_option,
    norm_option,
    length_option,
    optimisation_option,
    augmentation_option,
    evaluation_option,
    weights_option,
    input_option,
    prediction_option,
    output_option,
    file_option,
) = (partial(option, group) for group in GROUPS)


def default_of(field: dataclasses.Field) -> Any:
    """The default value of a field that ``option`` made."""
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


@dataclass
class Options:
    """The options of any script."""

    task: ClassVar[str] = ""
    deterministic: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse values out of range, before any work; subclasses add what relates options.

        Raises:
            UserError: names the option, its value and the range.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and default_of(field) is not None:
                raise UserError(f"--{field.name} has no value; give one, or leave it out.")
            if value == "" and default_of(field) != "":
                raise UserError(
                    f"--{field.name} is empty, perhaps an unset variable of the shell; give a "
                    "value, or leave it out."
                )
            _check_range(field, value)

    def check_launch(self, processes: int, on_cpu: bool, precision: str) -> None:
        """Refuse what the options and the launch make impossible together, before any work.

        Args:
            processes: of the job.
            on_cpu: whether they compute on the CPU.
            precision: Accelerate's mixed precision: no, bf16, fp16 or fp8.

        Raises:
            UserError: says what to give or how to launch instead.
        """


def _check_range(field: dataclasses.Field, value: Any) -> None:
    """Refuse a number out of its field's bounds, and a list of another length or order."""
    values = value if isinstance(value, list) else [value]
    numbers = [n for n in values if isinstance(n, int | float) and not isinstance(n, bool)]
    if not all(isinstance(n, int) or math.isfinite(n) for n in numbers):
        raise UserError(f"--{field.name} is {value}; give a finite number.")
    if any(abs(n) >= LARGEST_INTEGER for n in numbers if isinstance(n, int)):
        raise UserError(f"--{field.name} is {value}; that is too large.")
    length, bounds = field.metadata["length"], field.metadata["bounds"]
    if isinstance(value, list) and length is not None and len(value) != length:
        raise UserError(f"--{field.name} is {value}; it takes {length} values.")
    holds = {
        "at least": lambda number, bound: number >= bound,
        "above": lambda number, bound: number > bound,
        "at most": lambda number, bound: number <= bound,
        "below": lambda number, bound: number < bound,
    }
    for place, number in enumerate(numbers):
        own = {w: bound[place] if isinstance(bound, list) else bound for w, bound in bounds.items()}
        if not all(holds[words](number, bound) for words, bound in own.items()):
            allowed = " and ".join(f"{words} {bound}" for words, bound in own.items())
            which = f"value {place + 1}" if isinstance(value, list) else "it"
            raise UserError(f"--{field.name} is {value}; {which} must be {allowed}.")
    if field.metadata["ascending"] and numbers != sorted(numbers):
        raise UserError(f"--{field.name} is {value}; its values must ascend.")
