"""The table of what took effect, at the start of a run: read from the built objects, not from the config."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from vitmae.models.objective import Objective, as_objective
from vitmae.training.accounting import drop_path_rates
from vitmae.training.averaging import averages

_WIDTH = 120  # letters, without a terminal


class SetupReport(Callback):
    """Prints the table on the first rank, and saves it.

    Args:
        path: where the table is saved.
        changes: of a resumed run, by name the settings that it changes, as "old -> new".
    """

    def __init__(self, path: Path, changes: Mapping[str, str] | None = None) -> None:
        self.path, self.changes = path, dict(changes or {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and save the table, after everything is built."""
        if trainer.is_global_zero:
            objective = as_objective(pl_module)
            tables = [_run_table(trainer, objective, self.changes), _group_table(trainer, objective)]
            Console(width=None if sys.stdout.isatty() else _WIDTH).print(*tables, sep="\n")
            with self.path.open("w") as file:
                Console(file=file, width=_WIDTH, color_system=None).print(*tables, sep="\n")


def _run_table(trainer: Trainer, objective: Objective, changes: Mapping[str, str]) -> Table:
    table = Table(title="What took effect", show_header=False, title_justify="left")
    for name, value in _run_rows(trainer, objective):
        table.add_row(name, value)
    if trainer.global_step:
        table.add_row("resumed after step", str(trainer.global_step))
    for name, change in changes.items():
        table.add_row(f"changed: {name}", change)
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
    data = getattr(trainer, "datamodule", None)
    if data is None:
        return
    view, took = data.view, data.took_effect()
    scale = f" of {view.scale[0]:g} to {view.scale[1]:g} of the area" if view.crop == "random_resized" else ""
    yield "crop", f"{view.crop}{scale}, {'mirrored or not' if view.hflip else 'never mirrored'}"
    magnitude = took["rand_augment"]
    yield (
        "augmentation",
        (
            f"RandAugment {'off' if magnitude is None else f'{magnitude:g}'}, random erasing "
            f"{took['random_erasing']:g}, {data.repeats} of each image in a batch"
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
