"""What all objectives share: normalise, step, log, optimise. What they learn is in their own files.

An objective also describes itself, so that no other room has to know it: see `Objective`, and for what it can do beyond
learning `vitmae.models.protocols`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.models import vision_transformer as timm_layers
from torch import Tensor

from vitmae.allocator import keep_freed_memory
from vitmae.backbones.backbone import Backbone, use_fused_attention
from vitmae.backbones.blocks import Block
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.randomness import seed_torch
from vitmae.recipe import Recipe, build_optimizer, build_schedule, param_groups


class Objective(LightningModule, ABC):
    """A backbone with something to learn.

    Args:
        backbone: the seam.
        optimizer: the recipe.
        mean: of the data, per channel, of pixels in [0, 1]; part of the checkpoint, so that it cannot be lost.
        std: the standard deviation of the same pixels, per channel; part of the checkpoint too.

    Attributes:
        title: what it is called, for tables and model cards.
        paper: the address of the paper that it follows.
        needs_labels: whether it learns from labels.
        published_as: the public architecture whose files hold all of it; None: they hold its encoder alone.
        monitor: the logged value that tells the best checkpoint, and whether less or more is better.
        last_metrics: of the last training step, detached; a callback logs it every few steps, since logging
            each step from here costs more than a small model's step.
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
        """What its output is a prediction of, in a few words."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """The settings of its own that took effect, read from what was built: name -> value, in words."""

    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates of one image's forward pass in training, see `vitmae.backbones.macs`."""

    def normalize(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32 or wider with the data's mean and deviation taken out."""
        dtype = torch.promote_types(torch.float32, self.mean.dtype)
        return images.to(dtype, copy=True).sub_(self.mean * 255).div_(self.std * 255)

    def unnormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`, to [0, 1]: (B, C, H, W) -> (B, C, H, W), not clipped."""
        return images * self.std + self.mean

    def setup(self, stage: str) -> None:
        """Pick the attention (see `Backbone.use_fused_attention`) and the allocator's ways that are fast here."""
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        use_fused_attention(self, not (on_cpu and "bf16" in str(self.trainer.precision)))
        if on_cpu:
            keep_freed_memory()

    def compile_blocks(self) -> None:
        """torch.compile each transformer block: they share one shape, so one compilation serves all of them."""
        for module in self.modules():
            if isinstance(module, Block | timm_layers.Block):
                module.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; dropout, drop path and mixup draw from the batch's own key, so a resumed run draws the same."""
        seed_torch(batch.key, batch.images.device)
        metrics = self.measure(batch)
        self.last_metrics = {name: value.detach() for name, value in metrics.items()}
        return metrics["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Held-out values, averaged over images and ranks."""
        values = {f"val/{name}": value for name, value in self.measure(batch).items()}
        self.log_dict(
            values, on_step=False, on_epoch=True, batch_size=len(batch.images), sync_dist=True, add_dataloader_idx=False
        )

    def layer_of(self, name: str) -> int:
        """The layer of a parameter, for layer decay: the backbone's own count, and the full rate for all else."""
        inner = name.removeprefix("backbone.")
        return self.backbone.layer_of(inner) if inner != name else self.backbone.depth + 1

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe at this run's length and batch."""
        total_steps, steps_per_epoch, effective_batch = self.run_length()
        peak_lr = self.optimizer.peak_lr(effective_batch)
        warmup_steps = self.optimizer.warmup_steps(total_steps, steps_per_epoch)
        groups = param_groups(self.named_parameters(), self.optimizer, peak_lr, self.layer_of, self.backbone.depth + 1)
        optimizer = build_optimizer(groups, self.optimizer)
        schedule = build_schedule(optimizer, self.optimizer, peak_lr, warmup_steps, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def run_length(self) -> tuple[int, float, int]:
        """(optimiser steps of the run, those of an epoch, images per optimiser step) of the attached trainer."""
        trainer = self.trainer
        total_steps = int(trainer.estimated_stepping_batches)
        accumulate = trainer.accumulate_grad_batches
        steps_per_epoch = max(1.0, -(-trainer.num_training_batches // accumulate))
        batch_size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return total_steps, steps_per_epoch, batch_size * trainer.world_size * accumulate


def as_objective(module: LightningModule) -> Objective:
    """What this project's callbacks are given by Lightning, under its type."""
    assert isinstance(module, Objective), f"{type(module).__name__} is no objective"
    return module


def training_flops(objective: Objective) -> int:
    """FLOPs of one image in one training step: 2 per multiply-accumulate, forward once and backward twice as much.

    The convention of https://arxiv.org/abs/2204.02311 (appendix B): what is recomputed, as by gradient checkpointing,
    does not count, nor is anything taken off for what is frozen.
    """
    return 6 * objective.macs()
