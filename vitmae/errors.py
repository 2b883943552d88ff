"""The error that a user reads.

A command prints a `UserError` as one line and exits with code 2, and a `LostRank` as one line with code 1; any other
exception is a fault of this project and is printed with its traceback.
"""


class UserError(Exception):
    """What the user wants cannot be done: one line that names the setting, the allowed range and the remedy."""


class LostRank(Exception):
    """Another process of the run is missing or was killed: one line that says which."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
