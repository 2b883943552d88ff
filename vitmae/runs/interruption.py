"""Stop where a run can go on from: a signal asks for it, the next boundary between two steps answers.

A signal handler must not save or communicate: under DDP it comes at any point of any rank, and what it interrupts may
be a collective that the others wait in. So it sets a flag, and at a boundary all ranks agree on whether one of them has
it set. SIGTERM and SIGUSR1 are what schedulers send ahead of a kill; Ctrl-C asks for the same, and a second one stops
at once.
"""

import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Trainer


class Interrupted(Exception):
    """A run stopped on request, and `last.ckpt` is of the step at which it did.

    Args:
        step: the optimiser steps done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


class Interruption:
    """Whether somebody asked this run to stop."""

    def __init__(self) -> None:
        self.is_requested = False
        self.is_aborted = False

    def listen(self) -> None:
        """Take over the signals, which only a main thread gets; Lightning gives them back when its fit ends."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.is_requested:
                self.is_aborted = True
                raise KeyboardInterrupt
            # not a print: it might interrupt another one
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n")
        self.is_requested = True

    def is_agreed(self, trainer: "Trainer") -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer, and all have to ask."""
        return trainer.strategy.reduce_boolean_decision(self.is_requested, all=False)
