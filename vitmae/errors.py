"""The one error a user is meant to read.

A command prints a `UserError` as one line and exits with code 2; any other exception is a fault of this
project and keeps its traceback.
"""


class UserError(Exception):
    """What the user asked for cannot be done: one line that names the thing and the remedy."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
