"""An exponential moving average of the weights (EMA): what is validated, probed and used.

MAE's recipe for training from scratch keeps one at 0.9999 (https://arxiv.org/abs/2111.06377, table 11). A checkpoint
holds the average under ``state_dict``, where every reader of a checkpoint looks, and the trained weights, from which a
run resumes, under ``current_model_state``. This is Lightning's layout.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitmae.errors import UserError
from vitmae.interruption import interruption
from vitmae.training.lightning_internals import average_of


class WeightAverage(WeightAveraging):
    """Averages the parameters after each optimiser step; buffers are copied, because they are not weights.

    Args:
        decay: of the average, in (0, 1); smaller in the first steps, see `decay_at`.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=self._update)
        self.decay = decay
        self._is_in_place = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Move the copy of the weights to the device that trains: Lightning keeps it where the module is built."""
        super().setup(trainer, pl_module, stage)
        average = average_of(self)
        if average is not None:  # the count of updates stays on the CPU: reading it from a GPU would wait in each step
            average.module.to(trainer.strategy.root_device)

    def _update(self, average: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        model = average_of(self)
        assert model is not None
        decay = decay_at(int(model.n_averaged), self.decay)
        get_ema_multi_avg_fn(decay)(average, current, count)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume the average.

        Raises:
            UserError: the checkpoint holds no average.
        """
        if "averaging_state" not in checkpoint:
            raise UserError(
                f"model.optimizer.ema_decay={self.decay:g}: the run was started without an average: set it "
                "to null, or start a new run with backbone.weights="
            )
        if average_of(self) is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the objective the averaged weights; a signal waits, because half of an exchange mixes two models."""
        with interruption.deferred():
            super().on_validation_epoch_start(trainer, pl_module)
            self._is_in_place = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the objective its trained weights back."""
        with interruption.deferred():
            super().on_validation_epoch_end(trainer, pl_module)
            self._is_in_place = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the objective its trained weights back, from which an interrupted run is saved."""
        if self._is_in_place:
            self.on_validation_epoch_end(trainer, pl_module)

    @contextmanager
    def in_place(self, trainer: Trainer, objective: LightningModule) -> Iterator[None]:
        """Inside the block, the objective has the averaged weights, as in a validation."""
        self.on_validation_epoch_start(trainer, objective)
        try:
            yield
        finally:
            self.on_validation_epoch_end(trainer, objective)


def decay_at(count: int, decay: float) -> float:
    """The decay of an update after ``count`` others: at first (1 + count) / (10 + count), for short runs.

    TensorFlow's ExponentialMovingAverage with ``num_updates``. At 0.9999 the first 90,000 steps are below it.
    """
    return min(decay, (1 + count) / (10 + count))


@contextmanager
def averaged(trainer: Trainer, objective: LightningModule) -> Iterator[None]:
    """Inside the block, the objective has the averaged weights, if the run has a weight average."""
    with ExitStack() as stack:
        for average in averages(trainer):
            stack.enter_context(average.in_place(trainer, objective))
        yield


def averages(trainer: Trainer) -> list[WeightAverage]:
    """The run's weight average, in a list; empty if it has none."""
    return [callback for callback in getattr(trainer, "callbacks", ()) if isinstance(callback, WeightAverage)]
