"""An exponential moving average of the weights (EMA): what is validated, probed and used.

MAE's recipe for training from scratch keeps one at 0.9999 (https://arxiv.org/abs/2111.06377, table 11). A checkpoint
holds the average under ``state_dict``, where everything that loads one looks, and the trained weights, from which a run
goes on, under ``current_model_state``: Lightning's layout.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from vitmae.errors import UserError


class WeightAverage(WeightAveraging):
    """Averages the parameters after each optimiser step; buffers are copied, since they are no weights.

    Args:
        decay: of the average, in (0, 1), once it is warm, see `decay_at`.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=self._update)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the weights to the device that trains: Lightning would keep the copy where the module is built."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # counted on the CPU: asking a GPU would wait for it in each step
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def _update(self, average: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        assert self._average_model is not None
        decay = decay_at(int(self._average_model.n_averaged), self.decay)
        torch._foreach_lerp_(average, current, 1 - decay)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the average.

        Raises:
            UserError: if the run has kept none so far.
        """
        if "averaging_state" not in checkpoint:
            raise UserError(
                f"model.optimizer.ema_decay={self.decay:g}: the run was begun without an average: set it "
                "to null, or start anew with backbone.weights="
            )
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @contextmanager
    def in_place(self, objective: LightningModule) -> Iterator[None]:
        """Inside, the objective has the averaged weights."""
        if self._average_model is None:
            yield
            return
        self._swap_models(objective)
        try:
            yield
        finally:
            self._swap_models(objective)


def decay_at(count: int, decay: float) -> float:
    """The decay of an update after ``count`` others: (1 + count) / (10 + count) at first, so that short runs count too.

    TensorFlow's ExponentialMovingAverage with ``num_updates``. At 0.9999 the first 90,000 steps are below it.
    """
    return min(decay, (1 + count) / (10 + count))


@contextmanager
def averaged(trainer: Trainer, objective: LightningModule) -> Iterator[None]:
    """Inside, the weights are those that are used in the end: the averaged ones, where the run keeps an average."""
    with ExitStack() as stack:
        for average in averages(trainer):
            stack.enter_context(average.in_place(objective))
        yield


def averages(trainer: Trainer) -> list[WeightAverage]:
    """The run's weight average, if it keeps one."""
    return [callback for callback in getattr(trainer, "callbacks", ()) if isinstance(callback, WeightAverage)]
