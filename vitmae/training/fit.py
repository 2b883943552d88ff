"""The run itself: a Trainer of Lightning's with what this project adds, from the first step to the final metrics."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vitmae.errors import UserError
from vitmae.runs.directory import RunDirectory
from vitmae.runs.exit import watching_ranks
from vitmae.runs.interruption import Interrupted, Interruption
from vitmae.training.checkpoints import AtomicCheckpointIO, Checkpoints
from vitmae.training.wandb_logger import Wandb

NOT_FOR_USERS = (
    "does not have many workers",  # a set in memory needs none
    "smaller than the logging interval",  # the last step is logged all the same
    "in eval mode at the start of training",  # frozen parts are meant to be
    "callbacks used to create the checkpoint",  # the one that can be missing has an error of its own
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
        objective: what learns.
        data: what it learns from.
        build_trainer: `lightning.Trainer` with its settings, waiting for the rest of its arguments.
        run: where everything lands.
        checkpoints: saves them.
        callbacks: all others.
        loggers: metrics.csv among them.
        settings: the whole run's, for the loggers.
        ckpt: a checkpoint to go on from.

    Raises:
        Interrupted: if a signal asked to stop; `last.ckpt` is of that step.
        UserError: if the trainer's settings do not fit each other.
    """
    _quieten()
    _ask_for_gpus_at_no_cost()
    try:
        trainer = build_trainer(
            callbacks=[*callbacks, checkpoints],
            logger=list(loggers),
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run.path,
            use_distributed_sampler=False,  # the data shares itself out, so that a run can go on in mid-epoch
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer: {_one_line(error)}") from error
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = NoProfiler()  # type: ignore[attr-defined]
    run.save_environment(_devices(trainer))
    metrics: dict[str, float] = {}
    exit_code = 1
    try:
        for logger in loggers:
            logger.log_hyperparams(dict(settings))
        with _one_ending(trainer, run, checkpoints.interruption):
            trainer.fit(objective, datamodule=data, ckpt_path=ckpt, weights_only=True)
            metrics = _as_floats(trainer)
            if checkpoints.validated_step != trainer.global_step:  # a run may end between two validations
                trainer.validate(objective, datamodule=data, verbose=False)
                metrics |= _as_floats(trainer)
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, Wandb):
                logger.close(metrics, exit_code)
    return metrics


class NoProfiler(PassThroughProfiler):
    """Lightning's own way of not profiling makes a context more than a hundred times a step; this one makes none."""

    _context = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override] # theirs is a generator's
        """Nothing."""
        return self._context


@contextmanager
def _one_ending(trainer: Trainer, run: RunDirectory, interruption: Interruption) -> Iterator[None]:
    """However this process ends, those that it started end too, and so does it if one of them fails."""

    def end_others() -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)

    try:
        if trainer.world_size > 1 and trainer.is_global_zero:
            with watching_ranks(run, end_others):
                yield
        else:
            yield
    except Interrupted:
        raise  # the others stop at the same step by themselves
    except BaseException as error:
        end_others()
        if interruption.is_aborted:  # Lightning makes an exit of a second Ctrl-C
            raise KeyboardInterrupt from None
        if isinstance(error, MisconfigurationException) or "`val_check_interval`" in str(error):
            raise UserError(f"trainer: {_one_line(error)}") from error
        if "Error(s) in loading state_dict" in str(error):
            fault = str(error).splitlines()[1].strip()
            raise UserError(f"the checkpoint does not fit these settings: {fault}") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _as_floats(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _devices(trainer: Trainer) -> list[str]:
    """What this node computes on."""
    if trainer.strategy.root_device.type == "cuda":
        return [torch.cuda.get_device_name(index) for index in trainer.device_ids]
    return [f"{trainer.strategy.root_device.type}, {torch.get_num_threads()} threads"] * trainer.num_devices


def _quieten() -> None:
    """Leave out what Lightning says to everybody; what it says about a run's own faults stays."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", f".*{message}")


def _ask_for_gpus_at_no_cost() -> None:
    """Every optimiser step asks torch for a GPU, and Lightning makes torch load NVML anew for each answer.

    That leaves CUDA untouched for processes to be forked; where there is no GPU there is nothing to leave untouched.
    """
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
