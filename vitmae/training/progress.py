"""The progress of a run: one bar for the whole run in a terminal, a line every ten seconds in a file.

Lightning's own bars start again in each epoch, and are drawn every few batches instead of every few seconds.
"""

import logging
import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm  # type: ignore[import-untyped]

_SHOWN = ("loss", "val/loss", "val/acc1", "probe/knn")
_log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """Shows the optimiser steps, the loss of the last step and the held-out values of the last validation.

    It reads the clock in each step, but the loss, which waits for the GPU, only when it draws.

    Args:
        bar_s: seconds between two drawings of the bar.
        line_s: seconds between two lines without a terminal.
    """

    def __init__(self, bar_s: float = 0.5, line_s: float = 10.0) -> None:
        super().__init__()
        self._is_terminal = sys.stderr.isatty()
        self._every_s = bar_s if self._is_terminal else line_s
        self._bar: tqdm[Any] | None = None
        self._first_step = 0
        self._start = self._drawn = 0.0

    def disable(self) -> None:
        """Draw nothing from now on; Lightning calls this on every rank except the first."""
        self._every_s = math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock when the run starts or resumes."""
        self._first_step, self._start = trainer.global_step, time.monotonic()
        self._drawn = self._start
        if self._is_terminal and self._every_s < math.inf:
            total = trainer.estimated_stepping_batches
            steps = None if math.isinf(total) else int(total)
            self._bar = tqdm(total=steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Draw if it is due."""
        if time.monotonic() - self._drawn >= self._every_s:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last step."""
        if self._every_s < math.inf:
            self._draw(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the line of the bar."""
        self._close()

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn = time.monotonic()
        values = {**getattr(pl_module, "last_metrics", {}), **trainer.callback_metrics}
        text = "  ".join(f"{name} {float(values[name]):.4g}" for name in _SHOWN if name in values)
        if self._bar is not None:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(text)
            return
        rate = (trainer.global_step - self._first_step) / max(1e-9, self._drawn - self._start)
        steps = f"{trainer.global_step}/{trainer.estimated_stepping_batches:g}"
        _log.info("step %s  epoch %d  %s  %.3g steps/s", steps, trainer.current_epoch, text, rate)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
