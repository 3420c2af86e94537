"""Faults of a data set's files: collected while they are read, told together.

A reader catches the fault of each file or record and goes on, so that one pass finds them all:

    for file in files:
        with faults.of(file):
            read(file)          # raises a UserError

Training stops at the first of them; ``--check_data`` lists every one.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from errors import UserError


class Fault(NamedTuple):
    """What is wrong with one file, record or sample.

    Attributes:
        file: the file, or the sample's name; empty for the data set as a whole.
        place: of the fault in the file, such as "line 3"; empty for the whole file.
        sentence: what is wrong and what to do, as the user reads it.
    """

    file: str
    place: str
    sentence: str

    @property
    def kind(self) -> str:
        """The sentence without what differs between files: faults of one kind are counted."""
        text = self.sentence.replace(self.file, "…") if self.file else self.sentence
        text = re.sub(r"\S*/\S*[^\s,:;.)]", "…", text)  # other paths
        return re.sub(r"\d+(\.\d+)?", "N", text)


class Faults:
    """The faults found so far.

    Attributes:
        found: in the order in which they were found.
    """

    def __init__(self) -> None:
        self.found: list[Fault] = []

    @contextlib.contextmanager
    def of(self, file: object, place: str = "") -> Iterator[None]:
        """A context in which a UserError is a fault of this file, and ends the context only."""
        try:
            yield
        except UserError as error:
            self.add(file, str(error), place)

    def add(self, file: object, sentence: str, place: str = "") -> None:
        """Add a fault."""
        self.found.append(Fault(str(file), place, sentence))

    def stop_if_any(self) -> None:
        """Stop for what was found.

        Raises:
            UserError: the first fault, and how many others there are.
        """
        if not self.found:
            return
        first, others = self.found[0].sentence, len(self.found) - 1
        if others:
            more = f"{others} more fault{'s' if others > 1 else ''}"
            first = f"{first.removesuffix('.')} ({more}: --check_data lists all)."
        raise UserError(first)
