"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A user's mistake: its message is one sentence that says what is wrong, where, and what to do.

    The scripts print the message without a traceback and exit with status 2.
    """
