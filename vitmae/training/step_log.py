"""Logs the training loss every few steps.

Logging inside each step takes longer than a step of a small model. So the objective only stores its values
(`Objective.last_metrics`), and this callback averages them. It waits for the device only when it logs.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vitmae.batch import Batch
from vitmae.models.objective import as_objective


class StepLog(Callback):
    """Logs ``train/<name>``, ``train/lr``, ``train/images_per_s`` and ``epoch`` every ``log_every_n_steps``.

    The values are means over all ranks and over the steps since the last row; nan if a step among them was left out,
    see `vitmae.training.safety`. The speed counts the images of all ranks, and no time of validation.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._images = 0
        self._since = 0.0
        self._logged_step = self._last_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._logged_step, self._last_step = trainer.global_step, int(trainer.estimated_stepping_batches)
        self._restart_clock()

    def state_dict(self) -> dict[str, Any]:
        """The values since the last row: a resumed run logs the mean over all steps of its next row."""
        # numbers, not tensors: after a step that was left out they are nan, and no tensor of a checkpoint may be
        return {"sums": {name: float(total) for name, total in self._sums.items()}, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._sums = {name: torch.as_tensor(total) for name, total in state_dict["sums"].items()}
        self._batches = state_dict["batches"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add up this step's values, and log their mean if it is due."""
        # at each step, not at each row: the first rank alone may save, and then holds the values of all
        for name, value in mean_over_ranks(trainer, as_objective(pl_module).last_metrics).items():
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
        self._batches += 1
        self._images += len(batch.images)
        step = trainer.global_step
        is_last = step >= self._last_step or trainer.should_stop
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._logged_step or (step % every and not is_last):
            return
        values = {f"train/{name}": float(total) / self._batches for name, total in self._sums.items()}
        values["train/lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        values["train/images_per_s"] = self._images * trainer.world_size / (time.perf_counter() - self._since)
        values["epoch"] = trainer.current_epoch
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        self._logged_step = step
        self._sums, self._batches = {}, 0
        self._restart_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: the time of a validation does not count."""
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._images, self._since = 0, time.perf_counter()


def mean_over_ranks(trainer: Trainer, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The mean of each scalar over all ranks, in one collective; every rank calls it with the same names."""
    if trainer.world_size == 1 or not values:
        return values
    means = trainer.strategy.reduce(torch.stack([value.float() for value in values.values()]), reduce_op="mean")
    return dict(zip(values, means, strict=True))
