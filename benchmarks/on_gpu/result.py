"""What a check or a timing reports: a line of JSON from a worker, a line of words to a person."""

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

# Characters of a failure's output that are kept.
DETAILS = 4000
PASS, FAIL, TIME, LEFT_OUT = "PASS", "FAIL", "TIME", "LEFT OUT"


@dataclass(frozen=True)
class Result:
    """One check or one timing.

    Attributes:
        name: of the check.
        outcome: PASS, FAIL, TIME or LEFT_OUT.
        figure: the value seen, what failed, or why it was left out.
        values: a timing's numbers.
        details: the end of what a failure printed.
    """

    name: str
    outcome: str
    figure: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    details: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:<8} {self.name}{': ' if self.figure else ''}{self.figure}"

    def send(self) -> None:
        """Print the result for the command that started this worker."""
        print(json.dumps(asdict(self)), flush=True)


class Failed(Exception):
    """A check found a wrong value; the message says which, by how much, and the limit."""


def run_check(name: str, check: Callable[[], str]) -> Result:
    """Run a check that returns its figure; whatever it raises is a failure."""
    try:
        return Result(name, PASS, check())
    except Exception as error:
        return failure(name, error)


def failure(name: str, error: Exception) -> Result:
    """The result of a check that raised; the error's first line is its figure."""
    kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
    lines = str(error).strip().splitlines() or [""]
    details = "".join(traceback.format_exception(error))
    return Result(name, FAIL, kind + lines[0], details=details[-DETAILS:])


def needs_gpu(name: str) -> Result:
    """The result of a check that a CPU can't make."""
    return Result(name, LEFT_OUT, "needs a GPU")
