"""The run itself: Lightning's Trainer and this project's additions, from the first step to the final metrics."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vitmae.errors import UserError
from vitmae.interruption import Interrupted, interruption
from vitmae.runs.directory import RunDirectory
from vitmae.runs.ranks import watching_started
from vitmae.training.checkpoints import AtomicCheckpointIO, Checkpoints
from vitmae.training.lightning_internals import StartedProcesses, leave_signals_alone
from vitmae.training.wandb_logger import Wandb

NOT_FOR_USERS = (
    "does not have many workers",  # a set in memory needs none
    "smaller than the logging interval",  # the last step is logged all the same
    "in eval mode at the start of training",  # frozen parts are meant to be
    "callbacks used to create the checkpoint",  # the one that can be missing has an error of its own
    "The .srun. command is available",  # where a scheduler is installed, a run on one machine is meant to be one
    "LeafSpec",  # between Lightning and torch
    "Grad strides do not match bucket view",  # of a patch projection with one channel
)


def fit(
    objective: LightningModule,
    data: LightningDataModule,
    build_trainer: Callable[..., Trainer],
    *,
    run: RunDirectory,
    checkpoints: Checkpoints,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    settings: Mapping[str, Any],
    ckpt: Path | None,
) -> dict[str, float]:
    """Train, validate at the end, and return the final metrics.

    Args:
        objective: the model to train.
        data: the images.
        build_trainer: `lightning.Trainer` with its settings; called with the rest of its arguments.
        run: the directory of all files.
        checkpoints: the callback that saves checkpoints.
        callbacks: all others.
        loggers: all of them, metrics.csv included.
        settings: the whole run's, for the loggers.
        ckpt: a checkpoint to resume from.

    Raises:
        Interrupted: a signal stopped the run; `last.ckpt` is of the last step that it could be saved after.
        UserError: the trainer's settings do not fit each other.
    """
    trainer = make_trainer(
        build_trainer,
        callbacks=[*callbacks, checkpoints],
        logger=list(loggers),
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.path,
    )
    leave_signals_alone(trainer)
    interruption.check()
    run.save_environment(_devices(trainer))
    metrics: dict[str, float] = {}
    exit_code = 1
    try:
        for logger in loggers:
            logger.log_hyperparams(dict(settings))
        with _one_ending(trainer, run):
            trainer.fit(objective, datamodule=data, ckpt_path=ckpt, weights_only=True)
            metrics = checkpoints.metrics | _as_floats(trainer)
            if checkpoints.validated_step != trainer.global_step:  # a run may end between two validations
                trainer.validate(objective, datamodule=data, verbose=False)
                metrics |= _as_floats(trainer)
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, Wandb):
                logger.close(metrics, exit_code)
    return metrics


def make_trainer(build_trainer: Callable[..., Trainer], **arguments: Any) -> Trainer:
    """Lightning's Trainer, without what this project does itself.

    Args:
        build_trainer: `lightning.Trainer` with its settings.
        arguments: what a run adds.

    Raises:
        UserError: the settings do not fit each other.
    """
    _quieten()
    try:
        return build_trainer(
            use_distributed_sampler=False,  # the data module divides the images among ranks
            enable_model_summary=False,
            **arguments,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {_one_line(error)}") from error


@contextmanager
def _one_ending(trainer: Trainer, run: RunDirectory) -> Iterator[None]:
    """End all processes of the run together: those that this one started, and this one if another fails."""
    started = StartedProcesses(trainer)
    try:
        with interruption.last_words(started.kill):
            if trainer.world_size > 1 and trainer.is_global_zero:
                with watching_started(run, started.all, started.kill):
                    yield
            else:
                yield
    except Interrupted:
        raise  # the other ranks stop at the same step, or end with this process
    except BaseException as error:
        if trainer.world_size > 1 and interruption.is_requested and not isinstance(error, UserError):
            raise Interrupted(interruption.code) from error  # a collective fails because another rank has left
        started.kill()
        if isinstance(error, MisconfigurationException) or "`val_check_interval`" in str(error):
            raise UserError(f"trainer: {_one_line(error)}") from error
        if "Error(s) in loading state_dict" in str(error):
            fault = str(error).splitlines()[1].strip()
            raise UserError(f"the checkpoint does not fit these settings: {fault}") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _as_floats(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name != "step"}


def _devices(trainer: Trainer) -> list[str]:
    """The devices of this node, in words."""
    if trainer.strategy.root_device.type == "cuda":
        return [torch.cuda.get_device_name(index) for index in trainer.device_ids]
    return [f"{trainer.strategy.root_device.type}, {torch.get_num_threads()} threads"] * trainer.num_devices


def _quieten() -> None:
    """Hide Lightning's general advice; its messages about faults of this run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", f".*{message}")
