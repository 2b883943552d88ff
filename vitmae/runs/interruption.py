"""Stop a run so that it can resume: a signal sets a flag, and the run stops between two steps.

A signal handler must not save or communicate: under DDP it runs at any point of any rank, and may interrupt a
collective that the others wait in. So it sets a flag, and between two steps all ranks find out whether one of them has
it set. Schedulers send SIGTERM or SIGUSR1 before they kill a job. Ctrl-C does the same, and a second Ctrl-C stops the
run at once.
"""

import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Trainer


class Interrupted(Exception):
    """A run stopped on request; `last.ckpt` is of its last step.

    Args:
        step: the optimiser steps done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


class Interruption:
    """Whether a signal has requested that this run stops."""

    def __init__(self) -> None:
        self.is_requested = False
        self.is_aborted = False

    def listen(self) -> None:
        """Handle the signals, if this is the main thread; Lightning restores the old handlers when its fit ends."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.is_requested:
                self.is_aborted = True
                raise KeyboardInterrupt
            # not print: the signal may interrupt another print
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n")
        self.is_requested = True

    def is_agreed(self, trainer: "Trainer") -> bool:
        """Whether a signal stops any rank; a collective: every rank calls it and gets the same answer."""
        return trainer.strategy.reduce_boolean_decision(self.is_requested, all=False)
