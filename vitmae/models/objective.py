"""What all objectives share: normalise, step, log, optimise. The way from images to the loss is in their own files.

An objective also describes itself, so no other room has to know its class: see `Objective`, and
`vitmae.models.protocols` for what it can do besides training.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.models import vision_transformer as timm_layers
from torch import Tensor

from vitmae.allocator import keep_freed_memory
from vitmae.backbones.backbone import Backbone
from vitmae.backbones.blocks import Block, choose_kernels
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.randomness import seed_torch
from vitmae.recipe import Recipe, build_optimizer, build_schedule, param_groups


class Objective(LightningModule, ABC):
    """A backbone with a loss to train it.

    Args:
        backbone: the encoder.
        optimizer: the recipe.
        mean: of the data, per channel, of pixels in [0, 1]; saved in the checkpoint.
        std: the standard deviation of the same pixels, per channel; saved in the checkpoint too.

    Raises:
        UserError: the statistics have another number of channels than the images.

    Attributes:
        title: its name in tables and model cards.
        paper: the address of the paper that it follows.
        needs_labels: whether its loss needs labels.
        published_as: the public architecture whose files can hold all of it; None: they can hold its encoder only.
        monitor: the logged value that decides which checkpoint is best, and ``min`` or ``max``.
        last_metrics: of the last training step, detached; a callback logs them every few steps, because logging in
            each step takes longer than a step of a small model.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    published_as: ClassVar[Literal["vit_mae", "vit_classifier"] | None] = None
    monitor: tuple[str, str] = ("val/loss", "min")
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, optimizer: Recipe, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not len(mean) == len(std) == backbone.in_chans:
            raise UserError(
                f"the statistics have {len(mean)} channels and the images {backbone.in_chans}: set data.stats=auto"
            )
        self.backbone = backbone
        self.optimizer = optimizer
        self.register_buffer("mean", torch.tensor(tuple(mean), dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std), dtype=torch.float32).view(1, -1, 1, 1))
        self.last_metrics: dict[str, Tensor] = {}

    @abstractmethod
    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch under "loss", and scalars worth logging beside it."""

    @property
    @abstractmethod
    def predicts(self) -> str:
        """What is predicted, in a few words, for model cards and bundles."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Its own settings that took effect, read from the built modules: name -> value in words."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates of one image's forward pass in training, see `vitmae.backbones.macs`."""

    def normalize(self, images: Tensor) -> Tensor:
        """Standardise by the data's statistics: (B, C, H, W) uint8 -> (B, C, H, W) float32 or wider."""
        dtype = torch.promote_types(torch.float32, self.mean.dtype)
        return images.to(dtype, copy=True).sub_(self.mean * 255).div_(self.std * 255)

    def unnormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`, to pixels in [0, 1], not clipped: (B, C, H, W) -> (B, C, H, W)."""
        return images * self.std + self.mean

    def setup(self, stage: str) -> None:
        """Choose what is fast on this device: the kernels, and the allocator's settings."""
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        choose_kernels(self, in_cpu_bf16=on_cpu and "bf16" in str(self.trainer.precision))
        if on_cpu:
            keep_freed_memory()

    def compile_blocks(self) -> None:
        """torch.compile each transformer block; blocks of one shape share one compilation."""
        for module in self.modules():
            if isinstance(module, Block | timm_layers.Block):
                module.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch; dropout, drop path and mixup draw from its key, so a resumed run draws the same."""
        seed_torch(batch.key, batch.images.device)
        metrics = self.measure(batch)
        self.last_metrics = {name: value.detach() for name, value in metrics.items()}
        return metrics["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the held-out values, averaged over all images of all ranks."""
        values = {f"val/{name}": value for name, value in self.measure(batch).items()}
        self.log_dict(
            values, on_step=False, on_epoch=True, batch_size=len(batch.images), sync_dist=True, add_dataloader_idx=False
        )
        # the step of these values; by Lightning's own count it is one less
        step = float(self.trainer.global_step)
        self.log("step", step, on_epoch=True, reduce_fx="max", sync_dist=True, add_dataloader_idx=False)

    def layer_of(self, name: str) -> int:
        """The layer of a parameter, for layer decay: see `Backbone.layer_of`; depth + 1 outside the backbone."""
        inner = name.removeprefix("backbone.")
        return self.backbone.layer_of(inner) if inner != name else self.backbone.depth + 1

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser and the schedule of the recipe, for this run's length and effective batch."""
        total_steps, steps_per_epoch, effective_batch = self.run_length()
        peak_lr = self.optimizer.peak_lr(effective_batch)
        warmup_steps = self.optimizer.warmup_steps(total_steps, steps_per_epoch)
        groups = param_groups(self.named_parameters(), self.optimizer, peak_lr, self.layer_of, self.backbone.depth + 1)
        # in mixed precision, Lightning clips gradients only for optimisers that are not fused
        clips_in_mixed = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        optimizer = build_optimizer(groups, self.optimizer, fused=not clips_in_mixed)
        schedule = build_schedule(optimizer, self.optimizer, peak_lr, warmup_steps, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def run_length(self) -> tuple[int, float, int]:
        """Of the attached trainer: optimiser steps of the run, optimiser steps per epoch, images per optimiser step."""
        trainer = self.trainer
        total_steps = int(trainer.estimated_stepping_batches)
        accumulate = trainer.accumulate_grad_batches
        steps_per_epoch = max(1.0, -(-trainer.num_training_batches // accumulate))
        batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return total_steps, steps_per_epoch, batch_size * trainer.world_size * accumulate


def with_classes(model: Mapping[str, Any], num_classes: int | None) -> dict[str, Any]:
    """The settings of an objective; one with classes and without a number gets that of the data.

    Raises:
        UserError: the given number is smaller than that of the data.
    """
    from vitmae.config import takes  # here, so that models need no omegaconf

    if not takes(model["_target_"], "num_classes"):
        return dict(model)
    given = model.get("num_classes")
    if given is not None and num_classes is not None and given < num_classes:
        raise UserError(
            f"model.num_classes={given}, but the data has {num_classes} classes: must be ≥ {num_classes}, or null"
        )
    return {**model, "num_classes": num_classes if given is None else given}


def as_objective(module: LightningModule) -> Objective:
    """A module under the type that it has in this project: Lightning passes callbacks a `LightningModule`."""
    assert isinstance(module, Objective), f"{type(module).__name__} is no objective"
    return module


def training_flops(objective: Objective) -> int:
    """FLOPs of one image in one training step: 2 per multiply-accumulate, forward once and backward twice as much.

    The convention of https://arxiv.org/abs/2204.02311 (appendix B): recomputing, as in gradient checkpointing, does not
    count, and frozen layers count as all others.
    """
    return 6 * objective.macs()
