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
from vitmae.limits import check_arguments
from vitmae.runs.checkpoint_file import FORMAT, read_checkpoint
from vitmae.runs.directory import RunDirectory
from vitmae.runs.interruption import Interrupted, Interruption
from vitmae.training.averaging import averages
from vitmae.training.lightning_internals import is_validation_due, start_next_epoch_after_its_end


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, replaced as a whole: a process killed while it saves leaves the previous file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a new file, sync it, and rename it to the target."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Plain types and tensors only, on the CPU."""
        return read_checkpoint(Path(path))


class Checkpoints(Checkpoint):
    """Save `last.ckpt` every few optimiser steps, after each epoch and on interruption; `best.ckpt` at each new best.

    It saves between optimiser steps only, and after the validation that is due at a step, so a run that resumes from
    the file repeats nothing and leaves nothing out. Lightning calls it after all other callbacks, but before the
    module's own hooks: state that belongs in a checkpoint must change in a callback or within the step.

    Attributes:
        interruption: read between two steps: whether to stop there.
        validated_step: the optimiser step of the last validation.

    Args:
        run: where the files go.
        monitor: the logged value that decides which checkpoint is best, and ``min`` or ``max``.
        every_n_steps: optimiser steps between two saves within an epoch.
        settings: the run's, as plain values; saved in every checkpoint.
        interruption: whether the run must stop.
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
        interruption: Interruption,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self.every_n_steps, self.interruption = run, every_n_steps, interruption
        self._metric, self._mode = monitor
        self._plain: dict[str, Any] = {"vitmae_format": FORMAT, "vitmae_config": dict(settings)}
        self._plain["vitmae_facts"] = dict(facts or {})
        self._best_value: float | None = None
        self._is_best = False
        self._step = 0
        self._is_between_steps = True
        self.validated_step = -1

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and the facts."""
        return {"best_value": self._best_value, "facts": self._plain["vitmae_facts"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and the facts."""
        self._best_value = state_dict["best_value"]
        self._plain["vitmae_facts"] = {**state_dict.get("facts", {}), **self._plain["vitmae_facts"]}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the settings and the facts."""
        checkpoint.update(self._plain)

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
        """Start to listen for signals, after Lightning has installed its own handlers."""
        self._step = trainer.global_step
        self.interruption.listen()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save and stop after an optimiser step, unless a validation or the end of the epoch follows at once."""
        self._is_between_steps = trainer.global_step != self._step
        if not self._is_between_steps:
            return  # gradients are being accumulated, and a checkpoint does not hold them
        self._step = trainer.global_step
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and not is_validation_due(trainer):
            self._at_boundary(trainer, is_due=self._step % self.every_n_steps == 0 or self._step == trainer.max_steps)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether this checkpoint is the best so far."""
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        value = trainer.callback_metrics.get(self._metric)
        if trainer.strategy.reduce_boolean_decision(self._beats_best(value), all=False):
            assert value is not None
            self._best_value, self._is_best = float(value), True
        if trainer.state.fn != TrainerFn.FITTING:  # after the last step: last.ckpt has the validated weights
            self._keep_best(trainer)
        elif not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            if self._is_between_steps:
                self._at_boundary(trainer, is_due=True)
            elif self._is_best:  # within an accumulation: good to use, not to resume from
                self._is_best = False
                trainer.save_checkpoint(self._run.best, weights_only=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch; a run that ends within an epoch is saved already."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._at_boundary(trainer, is_due=True)

    def _beats_best(self, value: Tensor | None) -> bool:
        if value is None or self._best_value is None:
            return value is not None
        return bool(value < self._best_value if self._mode == "min" else value > self._best_value)

    def _is_sound(self, trainer: Trainer) -> bool:
        """Whether the last step's values are finite on every rank: diverged weights must not replace good ones."""
        metrics: dict[str, Tensor] = trainer.lightning_module.last_metrics  # type: ignore[assignment]
        finite = all(bool(value.isfinite()) for value in metrics.values())
        return trainer.strategy.reduce_boolean_decision(finite, all=True)

    def _at_boundary(self, trainer: Trainer, is_due: bool) -> None:
        stops = self.interruption.is_agreed(trainer)
        if (is_due or stops) and self._is_sound(trainer):
            trainer.save_checkpoint(self._run.last, weights_only=False)
            self._keep_best(trainer)
        if stops:
            raise Interrupted(trainer.global_step)

    def _keep_best(self, trainer: Trainer) -> None:
        """Save the best checkpoint as a link to the last one: a saved checkpoint is never changed."""
        if not self._is_best:
            return
        self._is_best = False
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
