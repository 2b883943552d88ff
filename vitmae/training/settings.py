"""The check of all settings of a run before anything is built: for `vitmae.train` and for the jobs of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from vitmae.config import check_settings
from vitmae.errors import UserError
from vitmae.limits import Text
from vitmae.runs.preflight import check_devices, check_strategy, resolve_precision
from vitmae.runs.settings import RunSettings, require_all
from vitmae.training.checkpoints import Checkpoints

Count = Annotated[int, Ge(1)]
Ranks = Annotated[int, Ge(1), Le(4096)]
Share = Annotated[float, Gt(0), Le(1)]
Precision = Literal[
    "auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64", 32, 16, 64
]
_PARTS = ("model", "backbone", "data", "trainer", "probe", "panel")
"""Settings from each of which one object is built."""
_OF_THE_RUN = {"callbacks", "default_root_dir", "enable_model_summary", "logger", "plugins", "use_distributed_sampler"}
"""Arguments of the Trainer that `vitmae.training.fit` sets."""
_UNUSED = {"limit_test_batches", "limit_predict_batches", "enable_autolog_hparams", "model_registry"}
"""Arguments of the Trainer for what no run does: it trains and validates."""


@dataclass(frozen=True)
class TrainerSettings:
    """The limits of Lightning's settings, which its own signature does not state.

    Attributes:
        accelerator: the kind of device.
        devices: how many on each machine, or their numbers; -1 and auto: all.
        num_nodes: machines.
        strategy: how several processes share the work.
        precision: auto and the names of Lightning.
        max_epochs: -1: max_steps alone ends the run.
        max_steps: optimiser steps; -1: max_epochs alone ends the run.
        accumulate_grad_batches: batches per optimiser step.
        gradient_clip_val: null or 0: no clipping.
        check_val_every_n_epoch: epochs between two validations.
        val_check_interval: a number of batches, or a share of an epoch.
        log_every_n_steps: optimiser steps.
        limit_train_batches: a number of batches, or a share of an epoch.
        limit_val_batches: the same; 0: no validation.
        num_sanity_val_steps: batches of the validation before the first step; -1: all.
        deterministic: algorithms that give the same bits again.
        benchmark: cuDNN's search for the fastest convolutions.
        detect_anomaly: autograd's search for NaN.
        min_epochs: epochs before a run may stop early.
        min_steps: steps before a run may stop early.
        overfit_batches: a number of batches, or a share of an epoch; 0: off.
    """

    accelerator: Text
    devices: Literal["auto", -1] | Ranks | Annotated[Sequence[Annotated[int, Ge(0)]], MinLen(1)]
    num_nodes: Ranks
    strategy: Text | Mapping[str, Any]
    precision: Precision | None
    max_epochs: Literal[-1] | Count | None
    max_steps: Literal[-1] | Count
    accumulate_grad_batches: Count
    gradient_clip_val: Annotated[float, Ge(0)] | None
    check_val_every_n_epoch: Count | None
    val_check_interval: Count | Share | None
    log_every_n_steps: Count | None
    limit_train_batches: Count | Share | None
    limit_val_batches: Annotated[int, Ge(0)] | Annotated[float, Ge(0), Le(1)] | None
    num_sanity_val_steps: Annotated[int, Ge(-1)] | None
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    detect_anomaly: bool
    min_epochs: Annotated[int, Ge(0)] | None
    min_steps: Annotated[int, Ge(0)] | None
    overfit_batches: Annotated[int, Ge(0)] | Annotated[float, Ge(0), Le(1)]


def check_run(settings: dict[str, Any]) -> None:
    """Refuse what no run can have, and fill in the precision that ``auto`` stands for.

    Raises:
        UserError: a setting is missing, unknown, out of range or without effect, a device does not exist, or the run
            has no end.
    """
    require_all(settings)
    loggers = {f"logger.{name}": node for name, node in settings["logger"].items()}
    for name, node in ({part: settings[part] for part in _PARTS} | loggers).items():
        if not isinstance(node, Mapping) or "_target_" not in node or "_partial_" in node:
            raise UserError(f"{name} must be a mapping with the setting _target_, and without _partial_")
    if "every_n_steps" not in settings["checkpoint"]:
        raise UserError("checkpoint.every_n_steps must be given: leave out ~checkpoint.every_n_steps")
    check_settings(settings, homes={"": RunSettings, "checkpoint": Checkpoints, "trainer": TrainerSettings})
    trainer = settings["trainer"]
    refuse_settings_of_the_run(trainer)
    accelerator, precision = trainer.get("accelerator", "auto"), trainer.get("precision", "32-true")
    check_devices(accelerator, trainer.get("devices", "auto"))
    check_strategy(trainer.get("strategy", "auto"))
    trainer["precision"] = resolve_precision(precision, accelerator)
    if trainer.get("max_epochs") == -1 and trainer.get("max_steps", -1) == -1:
        raise UserError("trainer.max_epochs=-1 and trainer.max_steps=-1: the run has no end: set one of them to ≥ 1")


def refuse_settings_of_the_run(trainer: Mapping[str, Any]) -> None:
    """Refuse settings of the Trainer that the run itself sets, or never uses.

    Raises:
        UserError: names the first of them.
    """
    if taken := _OF_THE_RUN & set(trainer):
        raise UserError(f"trainer.{min(taken)} has no effect: the run sets it itself, leave it out")
    if unused := _UNUSED & set(trainer):
        raise UserError(f"trainer.{min(unused)} has no effect: a run only trains and validates, leave it out")
