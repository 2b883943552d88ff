"""Run a command in this process, as its user would in a shell: arguments in, exit code and output out."""

import logging
from contextlib import contextmanager
from typing import NamedTuple

import torch

SHORT_RUN = (
    "trainer=cpu",
    "trainer.num_sanity_val_steps=0",
    "trainer.limit_val_batches=1",
    "logger=none",
    "backbone.embed_dim=16",
    "backbone.depth=1",
    "backbone.num_heads=2",
    "data.batch_size=16",
    "probe.images=50",
)
"""Words of `vitmae.train` for a small model; a test adds the number of steps."""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@contextmanager
def process_restored():
    """What a command does to this process's logging and random numbers is undone."""
    root = logging.getLogger()
    handlers, level, rng = root.handlers[:], root.level, torch.get_rng_state()
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_rng_state(rng)


def run_command(main, *arguments, capsys):
    """The end of a command."""
    capsys.readouterr()
    with process_restored():
        code = main(arguments)
    return Done(code, *capsys.readouterr())
