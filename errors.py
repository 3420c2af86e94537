"""The one exception for mistakes that a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A user's mistake: its message is one sentence that says what is wrong, where, and what to do.

    The scripts print the message without a traceback and exit with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a ``name`` not in ``known``: names the near ones, or a few if none is near.

    For the caller to raise: ``raise unknown_name("model", name, MODELS)``.
    """
    known = list(known)
    near = get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        return UserError(f"No {kind} is called {name!r}: did you mean {', '.join(near)}?")
    few = ", ".join(known) if len(known) <= 16 else ", ".join(known[:16]) + ", …"
    return UserError(f"No {kind} is called {name!r}: choose one of {few}.")
