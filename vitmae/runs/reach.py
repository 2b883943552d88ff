"""What a resumed run may reach: its own directory. A server or a folder that only its files name needs the user's word.

A run directory may come from somebody else. Its settings say where pictures of the user's images are uploaded, and a
link in it can point at any file of the user.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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


def refuse_reach(settings: Mapping[str, Any], file: Path, directory: Path | None, given: Sequence[str]) -> None:
    """Refuse to resume a run that would reach beyond its directory without the user's word.

    Args:
        settings: as they were saved.
        file: where they were read, for the message.
        directory: of the run; None for a checkpoint alone, which gets a new one.
        given: the overrides of the command line, as `key=value`.

    Raises:
        UserError: a setting names an account or an argument of the Trainer that the command line does not repeat; or
            a file of the run is a link to another place.
    """
    keys = {override.partition("=")[0].lstrip("+") for override in given}
    for name, value, reason in _reaching(settings):
        if value is not None and name not in keys:
            raise UserError(f"{file}: {name}={value} {reason}: add {name}={value} if you want this, else {name}=null")
    for entry in [] if directory is None else sorted(directory.iterdir()):
        if entry.is_symlink() and not entry.is_dir() and entry.resolve().parent != entry.parent.resolve():
            raise UserError(f"{entry} is a link to {entry.resolve()}, which would be changed: replace it by the file")


def _reaching(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(setting, value, reason) of each setting that reaches beyond the run."""
    for logger, node in (settings.get("logger") or {}).items():
        entity = node.get("entity") if isinstance(node, Mapping) else None
        if entity != os.environ.get("WANDB_ENTITY"):
            yield f"logger.{logger}.entity", entity, "is the account that this run uploads to"
    for argument, value in (settings.get("trainer") or {}).items():
        if argument not in _OF_TRAINER:
            yield f"trainer.{argument}", value, "may write or upload outside of the run"
