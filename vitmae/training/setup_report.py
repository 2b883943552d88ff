"""What took effect: one table at the start of a run, read back from the built objects and not from the config.

A setting that was written down and reached nothing is an error: two comparable projects train for days with a layer
decay that no optimiser ever saw.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from timm.layers.drop import DropPath
from torch import nn

from vitmae.errors import UserError
from vitmae.models.objective import Objective, as_objective
from vitmae.training.averaging import averages

_WIDTH = 120  # letters, where no terminal has a width


class Effects(Callback):
    """Prints the table, keeps it in the run directory, and checks each knob against what was built.

    Args:
        config: the resolved config as plain types.
        path: where the table is kept.
    """

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self.config, self.path = config, path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, then print on the first rank."""
        objective = as_objective(pl_module)
        check_knobs(self.config, observed_knobs(trainer, objective))
        if trainer.is_global_zero:
            tables = [_run_table(trainer, objective), _group_table(trainer, objective)]
            Console(width=None if sys.stdout.isatty() else _WIDTH).print(*tables, sep="\n")
            with self.path.open("w") as file:
                Console(file=file, width=_WIDTH, color_system=None).print(*tables, sep="\n")


def observed_knobs(trainer: Trainer, objective: Objective) -> dict[str, Any]:
    """Each knob's value as it stands in the built optimiser, modules and trainer, by its name in the config."""
    _, _, effective_batch = objective.run_length()
    groups = trainer.optimizers[0].param_groups
    peak = max(group["initial_lr"] for group in groups)
    scales = sorted({round(group["initial_lr"] / peak, 12) for group in groups}, reverse=True)
    observed = {
        "backbone.drop_path_rate": max(drop_path_rates(objective.backbone), default=0.0),
        "backbone.drop_rate": max((part.p for part in _dropouts(objective.backbone)), default=0.0),
        "model.optimizer.base_lr": peak * 256 / effective_batch,
        "model.optimizer.weight_decay": max(group["weight_decay"] for group in groups),
        "model.optimizer.layer_decay": scales[1] if len(scales) > 1 else 1.0,
        "model.optimizer.min_lr": _final_lr(trainer, peak),
        "model.optimizer.ema_decay": next((average.decay for average in averages(trainer)), None),
        "model.optimizer.betas": list(groups[0]["betas"]) if "betas" in groups[0] else None,
        "model.optimizer.momentum": groups[0].get("momentum"),
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "compile": any(getattr(module, "_compiled_call_impl", None) is not None for module in objective.modules()),
    }
    if hasattr(objective, "mixes"):
        alphas = _mixes(objective)
        observed |= {"model.mixup": alphas.get("mixup", 0.0), "model.cutmix": alphas.get("cutmix", 0.0)}
    return observed | _observed_data(trainer)


def _mixes(objective: Objective) -> dict[str, float]:
    """The alpha of each mix that a classifier does."""
    return {type(mix).__name__.lower(): mix.alpha for mix in objective.mixes}  # type: ignore[union-attr]


def _observed_data(trainer: Trainer) -> dict[str, Any]:
    """What training batches go through, from the loader and from what is done to a batch on the device."""
    data = getattr(trainer, "datamodule", None)
    if data is None:
        return {}
    augmentations = {type(augment).__name__: augment for augment in data._augmentation}
    return {
        "data.rand_augment": getattr(augmentations.get("RandAugment"), "magnitude", None),
        "data.random_erasing": getattr(augmentations.get("RandomErasing"), "probability", 0.0),
        "data.repeats": trainer.train_dataloader.requests.repeats,  # type: ignore[union-attr]
    }


def _final_lr(trainer: Trainer, peak: float) -> float:
    """Where the schedule of the last layer ends, asked of the schedule itself."""
    (config,) = trainer.lr_scheduler_configs
    return peak * config.scheduler.lr_lambdas[-1](int(trainer.estimated_stepping_batches))  # type: ignore[union-attr]


def check_knobs(config: Mapping[str, Any], observed: Mapping[str, Any]) -> None:
    """Compare what was configured with what was built.

    Raises:
        UserError: naming the first knob that reached nothing, or something else.
    """
    for name, value in observed.items():
        configured = _look_up(config, name)
        if configured is None or _same(configured, value):
            continue
        reached = "reached nothing" if value is None else f"became {value}"
        remedy = "null" if value is None else value
        raise UserError(f"{name}={configured} {reached}: set it to {remedy}, or make it count")


def drop_path_rates(backbone: nn.Module) -> list[float]:
    """The rate of stochastic depth in each block, in order; 0 in a frozen one, which is in eval mode."""
    drops = [module.drop_path1 for module in backbone.modules() if hasattr(module, "drop_path1")]
    return [float(drop.drop_prob) if isinstance(drop, DropPath) and drop.training else 0.0 for drop in drops]


def _dropouts(module: nn.Module) -> Iterator[nn.Dropout]:
    return (part for part in module.modules() if isinstance(part, nn.Dropout) and part.training)


def _look_up(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, bool) or isinstance(b, bool) or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def _run_table(trainer: Trainer, objective: Objective) -> Table:
    table = Table(title="What took effect", show_header=False, title_justify="left")
    for name, value in _run_rows(trainer, objective):
        table.add_row(name, value)
    return table


def _run_rows(trainer: Trainer, objective: Objective) -> Iterator[tuple[str, str]]:
    backbone, recipe = objective.backbone, objective.optimizer
    total_steps, steps_per_epoch, effective_batch = objective.run_length()
    warmup = recipe.warmup_steps(total_steps, steps_per_epoch)
    accumulate, world = trainer.accumulate_grad_batches, trainer.world_size
    count = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in objective.parameters() if not p.requires_grad)
    (grid_h, grid_w), (patch_h, patch_w) = backbone.grid_size, backbone.patch_size
    yield "objective", objective.title
    yield "parameters", f"{count / 1e6:.2f} M trained, {frozen / 1e6:.2f} M frozen"
    yield (
        "images",
        (
            f"{backbone.in_chans} x {backbone.img_size[0]} x {backbone.img_size[1]}: {grid_h} x {grid_w} "
            f"patches of {patch_h} x {patch_w}"
        ),
    )
    yield from objective.describe().items()
    yield (
        "effective batch",
        (
            f"{effective_batch} = {effective_batch // (world * accumulate)} per device x {world} "
            f"{'devices' if world > 1 else 'device'} x {accumulate} accumulated"
        ),
    )
    yield from _data_rows(trainer)
    yield "peak lr", f"{recipe.peak_lr(effective_batch):.4g} = {recipe.base_lr:g} x {effective_batch} / 256"
    epochs = total_steps / steps_per_epoch
    yield "steps", f"{total_steps} optimiser steps, {steps_per_epoch:g} per epoch, {epochs:.4g} epochs"
    yield "warm-up", f"{warmup} steps from 0, then a cosine to {recipe.min_lr:g}"
    clip = trainer.gradient_clip_val
    yield "optimiser", f"{type(trainer.optimizers[0]).__name__}, gradient clip {clip if clip else 'off'}"
    rates = drop_path_rates(backbone)
    yield "drop path per block", " ".join(f"{rate:.3g}" for rate in rates) if any(rates) else "0 in every block"
    for average in averages(trainer):
        yield "weight average", f"decay {average.decay:g}, less in the first steps; validated and saved as best"
    yield "precision", str(trainer.precision)
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    yield "devices", f"{world} x {name}" + (f", {torch.get_num_threads()} threads" if name == "CPU" else "")


def _data_rows(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """What is done to training images."""
    observed = _observed_data(trainer)
    if not observed:
        return
    view = trainer.datamodule.view  # type: ignore[attr-defined]
    scale = f" of {view.scale[0]:g} to {view.scale[1]:g} of the area" if view.crop == "random_resized" else ""
    yield "crop", f"{view.crop}{scale}, {'mirrored or not' if view.hflip else 'never mirrored'}"
    magnitude = observed["data.rand_augment"]
    yield (
        "augmentation",
        (
            f"RandAugment {'off' if magnitude is None else f'{magnitude:g}'}, random erasing "
            f"{observed['data.random_erasing']:g}, {observed['data.repeats']} of each image in a batch"
        ),
    )


def _group_table(trainer: Trainer, objective: Objective) -> Table:
    table = Table(title="Parameter groups", title_justify="left")
    for column in ("group", "lr at peak", "weight decay", "tensors", "parameters"):
        table.add_column(column, justify="left" if column == "group" else "right")
    seen: Counter[int] = Counter()
    for group in trainer.optimizers[0].param_groups:
        params = group["params"]
        seen.update(map(id, params))
        table.add_row(
            group["name"],
            f"{group['initial_lr']:.4g}",
            f"{group['weight_decay']:g}",
            str(len(params)),
            f"{sum(p.numel() for p in params):,}",
        )
    missed = [name for name, p in objective.named_parameters() if p.requires_grad and seen[id(p)] != 1]
    if missed:
        raise RuntimeError(f"the optimiser does not train {missed[0]} exactly once")
    return table
