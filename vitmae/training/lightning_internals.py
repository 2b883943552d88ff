"""Private names of Lightning that this project uses. No other file touches one.

`tests/test_foreign_internals.py` asserts for each that it exists and still has its effect.
"""

from copy import deepcopy
from pathlib import Path
from subprocess import Popen
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch.optim.swa_utils import AveragedModel


def start_next_epoch_after_its_end(trainer: Trainer) -> None:
    """Let a checkpoint from the end of an epoch start the next epoch, also in a run with max_steps.

    Lightning treats every checkpoint of a run with max_steps as one from within an epoch, and would resume in the
    finished epoch: the epoch's number, the accumulation and the validation would all be wrong. Call this before a
    checkpoint is loaded.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def is_validation_due(trainer: Trainer) -> bool:
    """Whether Lightning validates after the batch that ends now: no public attribute says so."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from replacing the handlers of `vitmae.interruption`.

    Its own handler of SIGTERM broadcasts, in the middle of whatever the process does, and between two parts of a run
    it lets the run end as if it were finished.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def holds_whole_state(trainer: Trainer) -> bool:
    """Whether one rank alone can save: with other strategies than DDP each rank may hold a part of the state."""
    return trainer.world_size == 1 or isinstance(trainer.strategy, DDPStrategy)


def save_without_others(trainer: Trainer, path: Path) -> None:
    """Save a checkpoint on the first rank while the others are elsewhere: `save_checkpoint` waits for them."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    trainer.strategy.save_checkpoint(checkpoint, path)


Boundary = Literal["step", "validation due", "validated", "epoch end due"]
"""Where between two optimiser steps a run is: nothing is due; a validation is due, or done, within an epoch; an epoch's
batches are done, and what follows its last batch is due, but no validation."""


def progress_at(trainer: Trainer, boundary: Boundary) -> dict[str, Any]:
    """What a checkpoint says about the progress of `fit`, to resume at a boundary that has been left already.

    The counts of batches and of the epoch are those at the last optimiser step. A batch that is ready was fetched for
    the next step and is fetched again. A batch is completed after its validation only, and an epoch is processed after
    its last batch: what Lightning does first when it resumes follows from these counts.
    """
    progress: dict[str, Any] = deepcopy(trainer.fit_loop.state_dict())
    for part in ("total", "current"):
        batches, epochs = progress["epoch_loop.batch_progress"][part], progress["epoch_progress"][part]
        batches["ready"] = batches["started"] = batches["processed"]
        batches["completed"] = batches["processed"] - (boundary == "step")
        epochs["processed"] = epochs["completed"] = epochs["ready"] - 1
        if boundary == "validation due":  # in the middle of it: Lightning starts it again
            validation = progress["epoch_loop.val_loop.batch_progress"][part]
            validation.update(ready=1, started=1, processed=0, completed=0)
    is_last = progress["epoch_loop.batch_progress"]["current"]["processed"] >= trainer.num_training_batches
    progress["epoch_loop.batch_progress"]["is_last_batch"] = is_last  # of this batch, not of the one fetched since
    # counted after the validation, and not at all if there are no batches left to advance by
    done_before = trainer.global_step - (boundary != "epoch end due")
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] = done_before
    return progress


def average_of(callback: WeightAveraging) -> AveragedModel | None:
    """The model that a callback averages into; None outside `fit`.

    Lightning chooses its device, and the device of its count of updates; no setting changes them.
    """
    return callback._average_model


class StartedProcesses:
    """The other ranks that Lightning's launcher starts; none if torchrun or srun started them.

    They are taken out of the launcher's list, because its observer kills this process without a message as soon as
    one of them is killed. What Lightning does with the list otherwise, `kill` does.

    Args:
        trainer: before it launches.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._launcher = trainer.strategy.launcher
        self._taken: list[Popen[bytes]] = []

    def all(self) -> list[Popen[bytes]]:
        """The processes started so far, those of rank 1, 2, … in their order."""
        listed = getattr(self._launcher, "procs", [])
        self._taken += listed
        listed.clear()
        return self._taken

    def kill(self) -> None:
        """End them at once."""
        for process in self.all():
            process.kill()
