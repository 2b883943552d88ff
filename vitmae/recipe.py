"""The optimisation recipe: parameter groups, the optimiser, and a learning-rate schedule per step.

Recipes and their sources: https://arxiv.org/abs/2111.06377 (tables 8 to 11), https://arxiv.org/abs/2010.11929
(tables 3 and 4).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitmae.errors import UserError
from vitmae.limits import check_arguments

WARMUP_SHARE = 0.05
"""Warm-up as a share of the run: 40 of 800 and 5 of 100 epochs in https://arxiv.org/abs/2111.06377, tables 8 and 9."""

_TOKENS = ("pos_embed", "cls_token", "reg_token", "mask_token", "latent")
"""Positions and tokens: they are added to the data, they do not multiply it."""


@check_arguments("model.optimizer")
@dataclass(frozen=True)
class Recipe:
    """How to optimise an objective.

    Attributes:
        name: the name of an optimiser in timm: adamw, sgd, lars, lamb, muon, …
        base_lr: the learning rate per 256 images; the peak is base_lr * effective batch / 256.
        weight_decay: of matrices; biases and norms have none, positions and tokens as `decay_tokens` says.
        decay_tokens: whether learned positions and tokens are decayed too, as in MAE's published pre-training, which
            spares vectors only; its published fine-tuning spares positions and tokens.
        betas: of Adam-like optimisers; None: the optimiser's own default, or an optimiser without betas.
        momentum: of SGD-like optimisers; None: the optimiser's own default, or an optimiser without momentum.
        warmup_epochs: length of the linear warm-up from 0, which moves every step; None: 5 % of the run.
        min_lr: the learning rate at the end of the cosine.
        layer_decay: the learning rate of layer i is scaled by layer_decay^(depth + 1 - i), i = 0 for the embeddings.
        ema_decay: of an exponential moving average of the weights, see `vitmae.training.averaging`; None: no average.
    """

    name: str = "adamw"
    base_lr: Annotated[float, Gt(0)] = 1.5e-4
    weight_decay: Annotated[float, Ge(0)] = 0.05
    decay_tokens: bool = False
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] | None = None
    momentum: Annotated[float, Ge(0), Lt(1)] | None = None
    warmup_epochs: Annotated[float, Ge(0)] | None = None
    min_lr: Annotated[float, Ge(0)] = 0.0
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown optimiser when the recipe is built, not when training starts."""
        if self.name not in list_optimizers():
            raise UserError(f"model.optimizer.name={self.name}: must be an optimiser of timm, such as adamw or sgd")

    def peak_lr(self, effective_batch: int) -> float:
        """The peak learning rate: base_lr * effective_batch / 256, with the images per optimiser step."""
        return self.base_lr * effective_batch / 256

    def warmup_steps(self, total_steps: int, steps_per_epoch: float) -> int:
        """Warm-up in optimiser steps.

        Raises:
            UserError: the warm-up is not shorter than the run.
        """
        if self.warmup_epochs is None:
            return round(WARMUP_SHARE * total_steps)
        steps = round(self.warmup_epochs * steps_per_epoch)
        if steps >= total_steps:
            raise UserError(
                f"model.optimizer.warmup_epochs={self.warmup_epochs:g} is {steps} steps, but the whole run has "
                f"{total_steps}: set fewer epochs, or null for 5 % of the run"
            )
        return steps


def param_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    recipe: Recipe,
    peak_lr: float,
    layer_of: Callable[[str], int],
    num_layers: int,
) -> list[dict[str, Any]]:
    """Group trainable parameters by layer and by weight decay, each group with its learning rate.

    A group is a dict for torch's optimisers (params, lr, weight_decay). Its name appears in the table that is printed
    at the start of a run.

    Args:
        named_parameters: those of the whole objective.
        recipe: gives weight decay, what is decayed, and layer decay.
        peak_lr: the learning rate of the last layer.
        layer_of: parameter name -> layer: 0 for embeddings, num_layers for the head.
        num_layers: depth + 1, as in the published code of https://arxiv.org/abs/2111.06377.
    """
    # timm's param_groups_layer_decay does not fit: it needs a `group_matcher` of the whole objective, and its groups
    # have an `lr_scale`, which torch's optimisers ignore, instead of a learning rate
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        is_token = name.rsplit(".", 1)[-1] in _TOKENS
        decayed = parameter.ndim > 1 and (recipe.decay_tokens or not is_token)
        layer = layer_of(name) if recipe.layer_decay != 1 else num_layers
        scale = recipe.layer_decay ** (num_layers - layer)
        where = f"layer {layer}, " if recipe.layer_decay != 1 else ""
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "lr": peak_lr * scale,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
                "name": where + ("decayed" if decayed else "not decayed"),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe, fused: bool = True) -> Optimizer:
    """The optimiser of the recipe: timm's of that name; for adamw torch's own.

    Args:
        groups: see `param_groups`.
        recipe: names the optimiser.
        fused: whether adamw takes one pass over the parameters.

    Raises:
        UserError: the recipe sets betas or momentum, and the optimiser has none.
    """
    given = {"betas": recipe.betas, "momentum": recipe.momentum}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if recipe.name == "adamw":
        settings["fused"] = fused
        settings.pop("momentum", None)
        optimizer: Optimizer = torch.optim.AdamW(groups, **settings)
    else:
        optimizer = create_optimizer_v2(groups, opt=recipe.name, lr=groups[-1]["lr"], weight_decay=0.0, **settings)
    for name, value in given.items():
        if value is not None and name not in optimizer.param_groups[0]:
            raise UserError(f"model.optimizer.{name} has no effect: {recipe.name} has no {name}; set it to null")
    optimizer.register_load_state_dict_pre_hook(_with_own_settings)
    return optimizer


def _with_own_settings(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any] | None:
    """A saved state with the optimiser's own settings, so that a resumed run can change its learning rate.

    None, which makes torch refuse the state as it is, if its groups have other sizes.
    """
    own, theirs = optimizer.state_dict()["param_groups"], saved["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in theirs]:
        return None
    return {**saved, "param_groups": own}


def cosine_factor(step: int, warmup_steps: int, total_steps: int, floor: float) -> float:
    """The share of the peak learning rate at an optimiser step: linear from 0 to 1, then half a cosine to `floor`."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Schedule(LambdaLR):
    """A schedule that resumes at the saved step, with the peak and the length of this run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step, and set the learning rates of that step."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        for group, peak, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = peak * factor(self.last_epoch)


def build_schedule(
    optimizer: Optimizer, recipe: Recipe, peak_lr: float, warmup_steps: int, total_steps: int
) -> Schedule:
    """A schedule that moves every step; its factor multiplies each group's own learning rate.

    Raises:
        UserError: the learning rate would end above its peak.
    """
    if recipe.min_lr > peak_lr:
        raise UserError(
            f"model.optimizer.min_lr={recipe.min_lr:g}: must be ≤ the peak learning rate, {peak_lr:.3g} "
            f"(base_lr={recipe.base_lr:g} x images per step / 256)"
        )
    floor = recipe.min_lr / peak_lr
    return Schedule(optimizer, lambda step: cosine_factor(step, warmup_steps, total_steps, floor))
