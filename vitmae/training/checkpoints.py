"""Checkpoints: `last.ckpt` to resume from, `best.ckpt` to use. They hold tensors and plain Python types only."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vitmae.atomic import atomic_replace, atomic_write
from vitmae.errors import UserError
from vitmae.interruption import Interrupted, interruption
from vitmae.limits import check_arguments
from vitmae.runs.checkpoint_file import FORMAT, read_checkpoint
from vitmae.runs.directory import RunDirectory
from vitmae.training.averaging import averages
from vitmae.training.lightning_internals import (
    Boundary,
    holds_whole_state,
    is_validation_due,
    progress_at,
    save_without_others,
    start_next_epoch_after_its_end,
)
from vitmae.training.safety import is_sound, remedy


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, replaced as a whole: a process killed while it saves leaves the previous file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a new file, sync it, and rename it to the target."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with interruption.deferred(), atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Plain types and tensors only, on the CPU."""
        return read_checkpoint(Path(path))


class Checkpoints(Checkpoint):
    """Save `last.ckpt` every few optimiser steps, after each epoch and on interruption; `best.ckpt` at each new best.

    It saves between optimiser steps, and after the validation that is due at a step, so a run that resumes from the
    file repeats nothing and leaves nothing out. Between two steps the weights stay as they are. So a signal that comes
    in a validation, a probe or a panel, or while the next batch is loaded, stops the run at once; it is saved as it was
    after the last step, and what was due there is done again when the run resumes. During a step a signal waits for its
    end, unless nothing would be lost. With several ranks the first saves alone and ends the others.

    Lightning calls it after all other callbacks, but before the module's own hooks: state that belongs in a checkpoint
    must change in a callback or within the step.

    Attributes:
        validated_step: the optimiser step of the last validation.
        metrics: the values of the last validation and probe when `last.ckpt` was saved.

    Args:
        run: where the files go.
        monitor: the logged value that decides which checkpoint is best, and ``min`` or ``max``.
        every_n_steps: optimiser steps between two saves within an epoch.
        settings: the run's, as plain values; saved in every checkpoint.
        facts: what else is saved in every checkpoint, as plain values: class names, origin of the first weights. A
            resumed run adds the saved facts that are not given here.
    """

    @check_arguments("checkpoint")
    def __init__(
        self,
        run: RunDirectory,
        monitor: tuple[str, str],
        every_n_steps: Annotated[int, Ge(1)],
        settings: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self.every_n_steps = run, every_n_steps
        self._metric, self._mode = monitor
        self._plain: dict[str, Any] = {"vitmae_format": FORMAT, "vitmae_config": dict(settings)}
        self._plain["vitmae_facts"] = dict(facts or {})
        self._best_value: float | None = None
        self._new_best: float | None = None  # of the last validation, until it is saved
        self._is_best = False  # whether `last.ckpt` is the best
        self._step = self._saved_step = 0
        self._is_between_steps = True
        self._left: Boundary = "step"  # the boundary that the run has left since `_step`
        self._is_late = False  # whether a checkpoint is saved of a boundary that the run has left
        self.validated_step = -1
        self.metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, what was validated, and the facts."""
        return {
            "best_value": self._best_value,
            "is_best": self._is_best,
            "validated_step": self.validated_step,
            "metrics": self.metrics,
            "facts": self._plain["vitmae_facts"],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._best_value, self._is_best = state_dict["best_value"], state_dict.get("is_best", False)
        self.validated_step = state_dict.get("validated_step", -1)
        self.metrics = dict(state_dict.get("metrics", {}))
        self._plain["vitmae_facts"] = {**state_dict.get("facts", {}), **self._plain["vitmae_facts"]}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the settings and the facts; of a boundary that was left, the progress that the run had there."""
        checkpoint.update(self._plain)
        if self._is_late:
            checkpoint["loops"]["fit_loop"] = progress_at(trainer, self._left)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run with a weight average without one: it would train on from the average.

        Raises:
            UserError: the checkpoint holds an average, and these settings have none.
        """
        if "averaging_state" in checkpoint and not averages(trainer):
            raise UserError(
                "model.optimizer.ema_decay=null: the run has an average of its weights: leave the "
                "setting as it was, or start a new run with backbone.weights="
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a checkpoint is loaded: one from the end of an epoch must resume in the next epoch."""
        start_next_epoch_after_its_end(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is unsaved yet; a run that was killed before it linked its best checkpoint links it now."""
        self._step = self._saved_step = trainer.global_step
        if self._is_best and Path(trainer.ckpt_path or "") == self._run.last:
            self._keep_best(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal does not wait for the end of a validation, not even within an accumulation."""
        interruption.release()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """From here to the end of the optimiser step a signal waits, if steps would be lost."""
        interruption.check()
        if self._saved_step != self._step:
            interruption.hold()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save and stop after an optimiser step, unless a validation or the end of the epoch follows at once."""
        self._is_between_steps = trainer.global_step != self._step
        if not self._is_between_steps:
            return  # gradients are being accumulated, and a checkpoint does not hold them
        self._step = trainer.global_step
        is_last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_validation_due(trainer):
            self._left = "validation due"
        elif is_last_batch:
            self._left = "epoch end due"
        else:
            self._left = "step"
            if not self._is_run_over(trainer):
                self._at_boundary(trainer, is_due=self._step % self.every_n_steps == 0)
        interruption.release()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether this checkpoint is the best so far."""
        if trainer.sanity_checking:
            return
        interruption.hold()  # the ranks are in step now
        self.validated_step = trainer.global_step
        value = trainer.callback_metrics.get(self._metric)
        if trainer.strategy.reduce_boolean_decision(self._beats_best(value), all=False):
            assert value is not None
            self._new_best = float(value)
        if trainer.state.fn != TrainerFn.FITTING:  # after the last step: last.ckpt has the validated weights
            if self._take_new_best():
                self._keep_best(trainer)
        elif not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            if not self._is_between_steps:  # within an accumulation: good to use, not to resume from
                if self._take_new_best():
                    self._is_best = False
                    self._save(trainer, self._run.best)
                return
            if self._is_run_over(trainer):
                self._left = "validated"
            else:
                self._at_boundary(trainer, is_due=True)
        interruption.release()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, and of a run that ends within an epoch."""
        interruption.hold()
        self._is_late = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self._at_boundary(trainer, is_due=True)
        self._is_late = False
        interruption.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save an interrupted run as it was after its last step, if that is not saved yet."""
        is_decided = isinstance(exception, Interrupted) and exception.step is not None  # by all ranks, after a step
        if not interruption.is_requested or interruption.is_aborted or is_decided or not trainer.is_global_zero:
            return
        is_unsaved = self._saved_step != self._step and not self._is_run_over(trainer)  # no run resumes after its end
        is_left = not interruption.is_held and self._is_between_steps and self._step == trainer.global_step
        if is_unsaved and is_left and holds_whole_state(trainer) and is_sound(trainer):
            self._is_late = True
            save_without_others(trainer, self._run.last)
            self._saved_step = self._step
        if isinstance(exception, Interrupted) and self._saved_step:
            exception.step = self._saved_step

    def _is_run_over(self, trainer: Trainer) -> bool:
        return trainer.global_step == trainer.max_steps

    def _beats_best(self, value: Tensor | None) -> bool:
        if value is None or not value.isfinite():
            return False
        if self._best_value is None:
            return True
        return bool(value < self._best_value if self._mode == "min" else value > self._best_value)

    def _save(self, trainer: Trainer, path: Path) -> None:
        """Save a checkpoint, whose values are all finite: a bad one never replaces a good one.

        Raises:
            UserError: a weight, an average or a moment is not finite on any rank.
        """
        if not trainer.strategy.reduce_boolean_decision(is_sound(trainer), all=True):
            raise UserError(
                f"step {trainer.global_step}: weights or the optimiser's state are not finite, so they are not saved; "
                f"{remedy(self._run)}"
            )
        trainer.save_checkpoint(path, weights_only=False)

    def _at_boundary(self, trainer: Trainer, is_due: bool) -> None:
        stops = trainer.strategy.reduce_boolean_decision(interruption.is_requested, all=False)
        if is_due or stops:
            self._take_new_best()
            self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items() if name != "step"}
            self._save(trainer, self._run.last)
            self._saved_step = trainer.global_step
            if self._is_best:
                self._keep_best(trainer)
        if stops:
            interruption.stop(self._saved_step)

    def _take_new_best(self) -> bool:
        """Whether the last validation was the best; from now on its value is to be beaten."""
        self._is_best = self._new_best is not None
        if self._new_best is not None:
            self._best_value, self._new_best = self._new_best, None
        return self._is_best

    def _keep_best(self, trainer: Trainer) -> None:
        """Save the best checkpoint as a link to the last one: a saved checkpoint is never changed."""
        if trainer.is_global_zero:
            with atomic_replace(self._run.best) as part:
                _link_or_copy(self._run.last, part)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
