"""What a resumed run may reach: its own directory. A server or a folder that only its files name needs the user's word.

A run directory may come from somebody else. Its settings say where pictures of the user's images are uploaded, and a
link in it can point at any file of the user.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any

from vitmae.errors import UserError

_OF_TRAINER = (
    "_target_",
    *("accelerator", "strategy", "devices", "num_nodes", "precision", "callbacks", "fast_dev_run", "max_time"),
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "overfit_batches", "val_check_interval"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark", "inference_mode"),
    *("detect_anomaly", "barebones", "sync_batchnorm", "reload_dataloaders_every_n_epochs"),
    *("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
)
"""Arguments of Lightning's Trainer that act within a run; others, such as `model_registry`, act elsewhere."""

_LOGS_OF_WANDB = "wandb/*/logs/*"
"""W&B links a log of each start to its own cache. A later start has another folder: nothing here is written again."""


def refuse_reach(
    settings: Mapping[str, Any], file: Path, directory: Path | None, given: Sequence[str], starts_again: bool = False
) -> None:
    """Refuse to resume a run that would reach beyond its directory without the user's word.

    Args:
        settings: as they were saved.
        file: where they were read, for the message.
        directory: of the run; None for a checkpoint alone, which gets a new one.
        given: the overrides of the command line, as `key=value`.
        starts_again: the run has no checkpoint yet, so the weights that its settings name would be loaded.

    Raises:
        UserError: a setting names an account or an argument of the Trainer that the command line does not repeat; or
            a file of the run is a link to another place.
    """
    _refuse_interpolation(file)
    if directory is not None:
        refuse_ways_out(directory)
    keys = {override.partition("=")[0].lstrip("+") for override in given}
    weights = _weights(settings) if starts_again else ()
    for name, value, reason in (*_reaching(settings), *weights):
        if value is not None and name not in keys:
            raise UserError(f"{file}: {name}={value} {reason}: add {name}={value} if you want this, else {name}=null")


def refuse_ways_out(directory: Path) -> None:
    """Refuse a directory, before a command writes there, if something in it leads elsewhere.

    Args:
        directory: of a run, a sweep or a comparison; it may not exist yet.

    Raises:
        UserError: an entry, at any depth, is a link out of the directory, a pipe, a socket or a device; or the path
            holds ``${``.
    """
    whole = directory.resolve()
    _refuse_interpolation(whole)
    for entry in sorted(whole.rglob("*")):
        mode = entry.lstat().st_mode
        if S_ISLNK(mode) and not entry.resolve().is_relative_to(whole) and not entry.match(_LOGS_OF_WANDB):
            raise UserError(f"{entry} is a link to {entry.resolve()}, which would be changed: remove the link")
        if not (S_ISLNK(mode) or S_ISREG(mode) or S_ISDIR(mode)):
            raise UserError(f"{entry} is a pipe, a socket or a device: must be a file; remove it")


def _refuse_interpolation(path: Path) -> None:
    if "${" in str(path.absolute()):
        raise UserError(f"{path}: the path holds ${{, which Hydra would resolve: rename the folder")


def _weights(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for part in ("backbone", "model"):
        node = settings.get(part)
        if isinstance(node, Mapping):
            yield f"{part}.weights", node.get("weights"), "would be read or downloaded again"


def _reaching(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(setting, value, reason) of each setting that reaches beyond the run."""
    for logger, node in (settings.get("logger") or {}).items():
        entity = node.get("entity") if isinstance(node, Mapping) else None
        if entity != os.environ.get("WANDB_ENTITY"):
            yield f"logger.{logger}.entity", entity, "is the account that this run uploads to"
        if isinstance(node, Mapping) and node.get("mode") == "online":
            yield f"logger.{logger}.mode", "online", "uploads what the run logs"
    for argument, value in (settings.get("trainer") or {}).items():
        if argument not in _OF_TRAINER:
            yield f"trainer.{argument}", value, "may write or upload outside of the run"
