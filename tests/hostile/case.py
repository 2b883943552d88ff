"""One hostile input and how it must end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.command_line import SHORT_RUN

TINY = (*SHORT_RUN, "trainer.max_steps=2")
"""Words of `vitmae.train` for a run of two steps; a case that should work starts with them."""


@dataclass(frozen=True)
class Case:
    """A command line, or a Python call, that a user could write and that a careless program answers with a traceback.

    The working directory holds, in a fresh copy for each case:

        runs/mae     a trained run, `{run}` in the arguments; ``ckpt=last`` finds it
        vit          a trained classifier of the same images
        photos       four good images, two in each of two class folders

    Attributes:
        id: unique among all cases.
        command: the name of a command, or a function of (folder, run) that calls Python.
        arguments: the words after the command; ``{folder}`` and ``{run}`` stand for those paths.
        files: a function that makes or damages files in the working directory.
        ends: 2: one line that holds every text of `says`, or for Python a UserError with them; 0: it works.
        says: texts of the line on stderr; where it works, texts of the output.
        writes: names in the working directory that may be new afterwards; a training may always write in runs/.
        is_slow: not in the fast suite: it takes seconds, or it is one more value of a setting that another case has.
    """

    id: str
    command: str | Callable[[Path, Path], object]
    arguments: tuple[str, ...] = ()
    files: Callable[[Path], None] | None = None
    ends: int = 2
    says: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    is_slow: bool = False
