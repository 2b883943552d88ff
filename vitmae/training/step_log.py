"""Logs the training loss every few steps, and stops the run if the loss is not finite.

Logging inside each step takes longer than a step of a small model. So the objective only stores its values
(`Objective.last_metrics`), and this callback averages them. It waits for the device only when it logs.
"""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.models.objective import as_objective


class StepLog(Callback):
    """Logs ``train/<name>``, ``train/lr``, ``train/images_per_s`` and ``epoch`` every ``log_every_n_steps``.

    The loss is that of the first rank. The speed counts the images of all ranks, and no time of validation.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._images = 0
        self._since = 0.0
        self._logged_step = self._last_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last_step = int(trainer.estimated_stepping_batches)
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add up this step's values, and log their mean if it is due.

        Raises:
            UserError: a value is not finite.
        """
        for name, value in as_objective(pl_module).last_metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        self._images += len(batch.images)
        step = trainer.global_step
        is_last = step >= self._last_step or trainer.should_stop
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._logged_step or (step % every and not is_last):
            return
        values = {f"train/{name}": float(total) / self._batches for name, total in self._sums.items()}
        if not all(map(torch.isfinite, map(torch.tensor, values.values()))):
            raise UserError(
                f"the loss is not finite at step {step} ({values}): resume from the last checkpoint with a smaller "
                "model.optimizer.base_lr, a longer model.optimizer.warmup_epochs or trainer.gradient_clip_val=1"
            )
        values["train/lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        values["train/images_per_s"] = self._images * trainer.world_size / (time.perf_counter() - self._since)
        values["epoch"] = trainer.current_epoch
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        self._logged_step = step
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: the time of a validation does not count."""
        self._restart()

    def _restart(self) -> None:
        self._sums, self._batches, self._images, self._since = {}, 0, 0, time.perf_counter()
