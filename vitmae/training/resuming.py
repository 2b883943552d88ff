"""Resume with another batch size or length: progress is counted in images and epochs, and the steps follow from it.

    saved: epoch 3, 20,480 of its images  ->  the batch that comes next, and the optimiser steps of a run that had the
                                              present batch size from the start

So the schedule continues at the same share of the run, with the present peak. A run whose settings are unchanged
resumes exactly as it was saved.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vitmae.errors import UserError
from vitmae.runs.directory import RunDirectory

_log = logging.getLogger(__name__)


class Resuming(Callback):
    """Translates a checkpoint for this run, or refuses it, before anything of the run is overwritten.

    Args:
        run: its metrics.csv is set aside if its steps are counted in another unit from now on.
        accept: called when training starts, after all checks: saves the settings.
    """

    def __init__(self, run: RunDirectory, accept: Callable[[], None]) -> None:
        self._run, self._accept = run, accept
        self._old_step: int | None = None
        self._is_accepted = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Translate the progress.

        Raises:
            UserError: the checkpoint does not say how many images it was trained on, and the batch size has changed;
                or the run is shorter than what it has trained already.
        """
        trainer.fit_loop.setup_data()  # the number of batches in an epoch
        loops = checkpoint["loops"]["fit_loop"]
        steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        saved_step = steps["total"]["completed"]
        progress = checkpoint.get(type(trainer.datamodule).__qualname__)  # type: ignore[attr-defined]
        if progress is None:
            _refuse_another_batch(trainer, checkpoint["vitmae_config"])
        else:
            _translate(trainer, checkpoint, **progress)
        step = steps["total"]["completed"]
        self._old_step = saved_step if step != saved_step else None
        batches = loops["epoch_loop.batch_progress"]["total"]["processed"]
        _check_length(trainer, step, batches / trainer.num_training_batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Accept the settings."""
        self._settle(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Accept the settings of a run with nothing left to train, which does not start."""
        self._settle(trainer)

    def _settle(self, trainer: Trainer) -> None:
        if self._is_accepted:
            return
        self._is_accepted = True
        self._accept()
        if self._old_step is not None:
            kept = self._run.metrics.with_name(f"metrics-to-step{self._old_step}.csv")
            if trainer.is_global_zero and self._run.metrics.exists() and not kept.exists():
                self._run.metrics.rename(kept)
            _log.info(
                "another number of images per step: step %d of before is step %d now; earlier metrics are in %s",
                self._old_step,
                trainer.global_step,
                kept.name,
            )


def _translate(trainer: Trainer, checkpoint: dict[str, Any], epoch: int, images: int) -> None:
    """Write the progress of this run's batch size into the checkpoint; it stays as it is if the size is the same."""
    loops = checkpoint["loops"]["fit_loop"]
    batch_progress = loops["epoch_loop.batch_progress"]
    per_epoch = int(trainer.num_training_batches)
    batch: int = trainer.datamodule.start_at(epoch, images) if images else 0  # type: ignore[attr-defined]
    accumulate = trainer.accumulate_grad_batches
    steps_per_epoch = -(-per_epoch // accumulate)
    # the gradients of a begun step are lost: its other batches make the next step
    step = epoch * steps_per_epoch + batch // accumulate
    progress = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    new_steps = step - progress["step"]["total"]["completed"]
    new_batches = epoch * per_epoch + batch - batch_progress["total"]["processed"]
    in_epoch = (batch if images else per_epoch) - batch_progress["current"]["processed"]
    if not new_steps and not new_batches:
        return
    _add(batch_progress["total"], new_batches)
    _add(batch_progress["current"], in_epoch)
    steps_in_epoch = (batch // accumulate if images else steps_per_epoch) - progress["step"]["current"]["completed"]
    for counts in (*progress.values(), loops["epoch_loop.scheduler_progress"]):
        _add(counts["total"], new_steps)
        _add(counts["current"], steps_in_epoch)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += new_steps
    for schedule in checkpoint["lr_schedulers"]:
        schedule["last_epoch"] += new_steps
        schedule["_step_count"] += new_steps
    if "WeightAverage" in checkpoint["callbacks"]:  # it averages only after later steps than this
        checkpoint["callbacks"]["WeightAverage"]["latest_update_step"] = step


def _add(counts: dict[str, int], number: int) -> None:
    for name in counts:
        counts[name] += number


def _refuse_another_batch(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """A checkpoint of an earlier version counts batches only."""
    before, now = saved["data"]["batch_size"], trainer.datamodule.batch_size  # type: ignore[attr-defined]
    if before != now:
        raise UserError(
            f"data.batch_size={now}: the checkpoint is of an earlier version, which counts batches of {before}: "
            f"set {before}, resume for one save, then change it"
        )
    accumulated, now = saved["trainer"]["accumulate_grad_batches"], trainer.accumulate_grad_batches
    if accumulated != now:
        raise UserError(
            f"trainer.accumulate_grad_batches={now}: the checkpoint is of an earlier version, which counts steps of "
            f"{accumulated} batches: set {accumulated}, resume for one save, then change it"
        )


def _check_length(trainer: Trainer, step: int, epochs: float) -> None:
    """Refuse a run that ends before the checkpoint; say it if nothing is left to train.

    Raises:
        UserError: trainer.max_epochs or trainer.max_steps is less than what is done.
    """
    limits = {"max_epochs": (trainer.max_epochs, epochs), "max_steps": (trainer.max_steps, step)}
    for name, (most, done) in limits.items():
        if most is None or most == -1:
            continue
        if done > most:
            raise UserError(
                f"trainer.{name}={most}: the run has trained {done:.4g} {name[4:]} already: set more, or leave it out"
            )
        if done == most:
            _log.info("all %d %s are trained already: nothing is left to train", most, name[4:])
