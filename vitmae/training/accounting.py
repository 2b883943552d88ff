"""Every setting is accounted for: its value is read back from the built objects, at the start of a run.

A setting that has no effect is an error: two comparable projects train for days with a layer decay that no optimiser
ever saw. A *part* is the object that was built from a node of the settings. The value that took effect is looked up in
three places, in this order:

    what is observed              in the optimiser, the modules and the trainer
    part.took_effect()[name]      what the part stores under another name
    part.name                     an attribute of the same name that is not a method

`part.without_effect()` returns the settings that have no effect in this run, each with the reason. Such a setting is an
error on the command line. In a file it is allowed, because a recipe is written for more than one set of images.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import ismethod
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import StrategyRegistry
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vitmae.errors import UserError
from vitmae.models.objective import Objective, as_objective
from vitmae.torch_internals import is_compiled
from vitmae.training.averaging import averages
from vitmae.training.settings import refuse_settings_of_the_run

_MISSING = object()


class Leaf(NamedTuple):
    """A setting, and the value that took effect.

    Attributes:
        name: as it is written on a command line.
        value: as it was set.
        found: the value that took effect; `_MISSING` if nothing was found.
        part: the object that was built from the setting's node.
        reason: why the setting has no effect; None if it must have one.
    """

    name: str
    value: Any
    found: Any
    part: Any
    reason: str | None


class Accounting(Callback):
    """Stops a run in which a setting has no effect, or another value took effect.

    Args:
        settings: the run's, as plain values.
        parts: by name, the object that was built from each node; for a setting that is no node, its value.
        overrides: the words of the command line.
        idle: by name of a setting or a node, why it has no effect in this run.
    """

    def __init__(
        self, settings: Mapping[str, Any], parts: Mapping[str, Any], overrides: Sequence[str], idle: Mapping[str, str]
    ) -> None:
        self.settings, self.parts, self.idle = settings, parts, idle
        self.given = _given(settings, overrides)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check on every rank."""
        observed = observe(trainer, as_objective(pl_module)) | _observe_trainer(trainer, self.settings["trainer"])
        idle = {**_overruled(trainer), **_beyond_the_epoch(trainer, self.settings["trainer"]), **self.idle}
        for leaf in leaves(self.settings, {**self.parts, "trainer": trainer}, idle):
            check(leaf._replace(found=observed.get(leaf.name, leaf.found)), _is_given(leaf, self.given))


def refuse_idle(
    settings: Mapping[str, Any],
    overrides: Sequence[str],
    idle: Mapping[str, str],
    parts: Mapping[str, Any] | None = None,
) -> None:
    """Before a run, refuse settings that the command line gives and that are known to have no effect.

    Args:
        settings: see `Accounting`, like the next two.
        overrides: the words of the command line.
        idle: by name of a setting or a node, why it has no effect in this run.
        parts: by name, the objects that are built already; they may name further settings.

    Raises:
        UserError: names the first one, and why it has no effect.
    """
    given = _given(settings, overrides)
    for leaf in leaves(settings, settings if parts is None else parts, idle):
        if leaf.reason:
            check(leaf, _is_given(leaf, given))


def _given(settings: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """The settings and nodes that the command line names; a group's choice is none."""
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    return tuple(key for key in keys if key not in settings["choices"])


def _is_given(leaf: Leaf, given: Sequence[str]) -> bool:
    return any(f"{leaf.name}.".startswith(f"{key}.") for key in given)


def leaves(
    node: Mapping[str, Any], part: Any, idle: Mapping[str, str], path: str = "", reason: str | None = None
) -> Iterator[Leaf]:
    """Each setting of a node and of the nodes in it.

    Args:
        node: settings.
        part: the object that was built from them, or a mapping.
        idle: by name, why settings have no effect.
        path: the node's name.
        reason: why no setting of the node has an effect; None if they must have one.
    """
    took, without = _ask(part, "took_effect"), _ask(part, "without_effect")
    for key, value in node.items():
        name = f"{path}.{key}" if path else key
        if key in ("_target_", "_partial_") or name == "choices":
            continue  # the class that a node builds, and what is filled in
        found = took[key] if key in took else _attribute(part, key)
        if key == "weights":  # the code that loads them checks and reports the result
            found = value
        why = idle.get(name) or without.get(key) or reason
        if isinstance(value, Mapping) and value and found is not _MISSING:
            yield from leaves(value, found, idle, name, why)
        elif isinstance(value, list) and isinstance(found, Sequence) and any(isinstance(one, Mapping) for one in value):
            for number, (one, built) in enumerate(zip(value, found, strict=False)):
                yield from leaves(one, built, idle, f"{name}[{number}]", why)
        else:
            yield Leaf(name, value, found, part, why)


def _ask(part: Any, method: str) -> Mapping[str, Any]:
    answer: Callable[[], Mapping[str, Any]] = getattr(part, method, dict)
    return answer()


def _attribute(part: Any, name: str) -> Any:
    held = part.keywords if isinstance(part, partial) else part
    found = held.get(name, _MISSING) if isinstance(held, Mapping) else getattr(held, name, _MISSING)
    return _MISSING if ismethod(found) else found


def check(leaf: Leaf, is_given: bool) -> None:
    """Refuse a setting that has no effect, or where another value took effect; null and auto may become any value.

    Args:
        leaf: the setting.
        is_given: whether it stands on the command line.

    Raises:
        UserError: names it, and what to do.
    """
    shown = f"{leaf.name}={leaf.value}"
    if leaf.reason:
        if is_given:
            raise UserError(f"{shown} has no effect: {leaf.reason}")
        return
    if leaf.found is _MISSING:
        key, part = leaf.name.rpartition(".")[2], type(leaf.part).__name__
        raise UserError(
            f"{leaf.name} has no effect: {part} has no attribute {key}: store it, or return it from took_effect()"
        )
    if isinstance(leaf.found, Tensor):  # the start of a learned parameter, which has moved since
        return
    if leaf.value is None or leaf.value == "auto" or _same(leaf.value, leaf.found):
        return
    outcome = "has no effect" if leaf.found is None else f"became {leaf.found}"
    raise UserError(f"{shown} {outcome}: set it to {'null' if leaf.found is None else leaf.found}")


def _same(value: Any, found: Any) -> bool:
    """Whether a setting is what was found, up to its type: a list for a tuple, one number for both sides of a pair."""
    if isinstance(value, bool) or isinstance(found, bool):
        return value is found
    if isinstance(value, int | float) and isinstance(found, int | float):
        return math.isclose(value, found, rel_tol=1e-6, abs_tol=1e-12)
    if isinstance(found, list | tuple) and not isinstance(value, str):
        values = value if isinstance(value, list | tuple) else [value] * len(found)
        return len(values) == len(found) and all(map(_same, values, found))
    return bool(value == found) or os.path.expanduser(str(value)) == str(found)


def observe(trainer: Trainer, objective: Objective) -> dict[str, Any]:
    """By name, the values of settings in the built optimiser and modules."""
    _, steps_per_epoch, effective_batch = objective.run_length()
    groups = trainer.optimizers[0].param_groups
    peak = max(group["initial_lr"] for group in groups)
    scales = sorted({round(group["initial_lr"] / peak, 12) for group in groups}, reverse=True)
    (schedule,) = trainer.lr_scheduler_configs
    factor = schedule.scheduler.lr_lambdas[-1]  # type: ignore[union-attr]
    final = factor(int(trainer.estimated_stepping_batches))
    dropouts = [part.p for part in objective.backbone.modules() if isinstance(part, nn.Dropout) and part.training]
    return {
        "backbone.drop_path_rate": max(drop_path_rates(objective.backbone), default=0.0),
        "backbone.drop_rate": max(dropouts, default=0.0),
        "model.optimizer.base_lr": peak * 256 / effective_batch,
        "model.optimizer.weight_decay": max(group["weight_decay"] for group in groups),
        "model.optimizer.layer_decay": scales[1] if len(scales) > 1 else 1.0,
        "model.optimizer.min_lr": peak * final,
        "model.optimizer.warmup_epochs": _warmup_epochs(factor, steps_per_epoch, objective.optimizer.warmup_epochs),
        "model.optimizer.ema_decay": next((average.decay for average in averages(trainer)), None),
        "model.optimizer.betas": list(groups[0]["betas"]) if "betas" in groups[0] else None,
        "model.optimizer.momentum": groups[0].get("momentum"),
        "compile": any(map(is_compiled, objective.modules())),
    }


def _warmup_epochs(factor: Callable[[int], float], steps_per_epoch: float, configured: float | None) -> float:
    """The length of the schedule's warm-up; as configured, if that is the same number of whole steps."""
    steps = 0 if factor(0) == 1 else round(1 / factor(1))  # linear from 0
    is_as_configured = configured is not None and round(configured * steps_per_epoch) == steps
    return configured if is_as_configured else steps / steps_per_epoch  # type: ignore[return-value]


def drop_path_rates(backbone: nn.Module) -> list[float]:
    """The rate of stochastic depth in each block, in order; 0 in a frozen one, which is in eval mode."""
    drops = [module.drop_path1 for module in backbone.modules() if hasattr(module, "drop_path1")]
    return [float(drop.drop_prob) if isinstance(drop, DropPath) and drop.training else 0.0 for drop in drops]


def _observe_trainer(trainer: Trainer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """By name, the values of the Trainer's settings that are not attributes of it.

    Raises:
        UserError: a setting is given that the run itself sets.
    """
    refuse_settings_of_the_run(settings)
    accelerator, devices, precision, strategy, deterministic = (
        settings.get(key) for key in ("accelerator", "devices", "precision", "strategy", "deterministic")
    )
    device = trainer.strategy.root_device.type
    named = isinstance(strategy, str) and strategy in StrategyRegistry and StrategyRegistry[strategy]["strategy"]
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    observed = {
        "accelerator": accelerator if accelerator == "gpu" and device != "cpu" else device,
        "devices": devices if isinstance(devices, str) or devices == -1 else trainer.num_devices,
        "strategy": strategy if named and isinstance(trainer.strategy, named) else type(trainer.strategy).__name__,
        "precision": precision if trainer.precision.startswith(str(precision)) else trainer.precision,
        "deterministic": deterministic if deterministic == "warn" and is_deterministic else is_deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "detect_anomaly": torch.is_anomaly_enabled(),
        "profiler": type(trainer.profiler).__name__.removesuffix("Profiler").lower(),  # type: ignore[attr-defined]
    }
    if isinstance(devices, list):
        observed["devices"] = trainer.device_ids
    if settings.get("num_sanity_val_steps") == -1 and math.isinf(trainer.num_sanity_val_steps):
        observed["num_sanity_val_steps"] = -1
    # Some settings of Lightning are stored in no attribute: Lightning's own checks have to be enough.
    unseen = {key: value for key, value in settings.items() if not hasattr(trainer, key)}
    return {f"trainer.{key}": value for key, value in {**unseen, **observed}.items()}


def _overruled(trainer: Trainer) -> dict[str, str]:
    """By name, the Trainer's settings that fast_dev_run or overfit_batches replaces, and which of the two."""
    replaced = ["limit_train_batches", "limit_val_batches"]
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        replaced += ["max_epochs", "max_steps", "num_sanity_val_steps", "val_check_interval", "check_val_every_n_epoch"]
        return {f"trainer.{key}": "trainer.fast_dev_run replaces it" for key in replaced}
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        return {f"trainer.{key}": "trainer.overfit_batches replaces it" for key in replaced}
    return {}


def _beyond_the_epoch(trainer: Trainer, settings: Mapping[str, Any]) -> dict[str, str]:
    """By name, the Trainer's numbers of batches that are larger than those of an epoch.

    Raises:
        UserError: an optimiser step would need more batches than an epoch has; the learning rate follows from it.
    """
    batches = len(trainer.train_dataloader)  # type: ignore[arg-type]
    accumulated = settings.get("accumulate_grad_batches", 1)
    if accumulated > batches:
        raise UserError(
            f"trainer.accumulate_grad_batches={accumulated}, but an epoch has {batches} batches: must be ≤ {batches}"
        )
    lengths = {"limit_train_batches": batches, "limit_val_batches": len(trainer.val_dataloaders or ())}
    return {
        f"trainer.{key}": f"an epoch has {length} batches: set at most {length}, or leave it out"
        for key, length in lengths.items()
        if isinstance(settings.get(key), int) and settings[key] > length
    }
