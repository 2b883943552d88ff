"""Private names of Lightning that this project uses. No other file touches one.

`tests/test_foreign_internals.py` asserts for each that it exists and still has its effect.
"""

from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
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


def average_of(callback: WeightAveraging) -> AveragedModel | None:
    """The model that a callback averages into; None outside `fit`.

    Lightning chooses its device, and the device of its count of updates; no setting changes them.
    """
    return callback._average_model
