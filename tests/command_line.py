"""Run a command in this process, as its user would in a shell: arguments in, exit code and output out."""

import logging
from typing import NamedTuple

import torch


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run_command(main, *arguments, capsys):
    """The end of a command; what it does to this process's logging is undone."""
    root = logging.getLogger()
    handlers, level, rng = root.handlers[:], root.level, torch.get_rng_state()
    capsys.readouterr()
    try:
        code = main(arguments)
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_rng_state(rng)
    return Done(code, *capsys.readouterr())
