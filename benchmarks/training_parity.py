"""Five steps of MAE's pre-training here and in `benchmarks.published_mae`, from the same weights, in float64."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import published_mae
from vitmae.backbones.timm_vit import TimmViT
from vitmae.batch import Batch
from vitmae.composition import compose
from vitmae.config import build
from vitmae.models.mae import MAE
from vitmae.randomness import fold_each, fold_indices, uniform

STEPS = 5
_BATCH, _TOTAL = 8, 20  # images per step, steps of the whole run; of these one warms up
_SHAPE = published_mae.Shape(patch=8, side=4, heads=4, decoder_heads=2, depth=3, decoder_depth=2)


class Difference(NamedTuple):
    """After a step: the largest absolute difference of any weight, and that of the loss before the step."""

    weights: float
    loss: float


def five_steps(norm_pix_loss: bool) -> list[Difference]:
    """Train both, with the recipe of `model=mae` here, and compare after every step."""
    mae = _objective(norm_pix_loss)
    theirs = {name: weight.detach().clone().requires_grad_() for name, weight in mae.named_parameters()}
    trainer = SimpleNamespace(  # what an objective asks of a Trainer
        estimated_stepping_batches=_TOTAL,
        num_training_batches=_TOTAL,
        accumulate_grad_batches=1,
        world_size=1,
        datamodule=SimpleNamespace(batch_size=_BATCH),
        gradient_clip_val=None,
        precision="64-true",
    )
    mae.trainer = trainer  # type: ignore[assignment]
    configured = mae.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]  # type: ignore[index, typeddict-item]
    published = published_mae.AdamW(theirs, mae.optimizer.peak_lr(_BATCH), warmup=1, total=_TOTAL)
    differences = []
    for step in range(STEPS):
        batch = _batch(step)
        here = mae.measure(batch)["loss"]
        optimizer.zero_grad()
        here.backward()
        optimizer.step()
        schedule.step()
        noise = uniform(fold_each(batch.keys, "mask"), _SHAPE.side**2)
        images = mae.normalize(batch.images)
        there = published_mae.loss(theirs, _SHAPE, images, noise, mae.mask_ratio, norm_pix_loss)
        published.step(there)
        weights = max(float((p - theirs[name]).detach().abs().max()) for name, p in mae.named_parameters())
        differences.append(Difference(weights, abs(float((here - there).detach()))))
    return differences


def section(results: dict[bool, list[Difference]], limit: float) -> str:
    """The part of docs/parity.md about training."""
    lines = [
        "## Five steps of training",
        "",
        "MAE's pre-training against the model, the loss, the schedule and AdamW written down from the paper",
        "(`benchmarks/published_mae.py`), from the same weights, in float64: the largest absolute difference of any",
        f"weight after each step, which must be < {limit:.0e}, and the largest of the loss.",
        "",
        "| norm_pix_loss | " + " | ".join(f"step {step}" for step in range(1, STEPS + 1)) + " | loss |",
        "|---" * (STEPS + 2) + "|",
    ]
    for norm_pix_loss, steps in results.items():
        numbers = [f"{step.weights:.0e}" for step in steps] + [f"{max(step.loss for step in steps):.0e}"]
        lines.append(f"| {str(norm_pix_loss).lower()} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def _objective(norm_pix_loss: bool) -> MAE:
    """A small MAE with the settings of `model=mae`, in float64; its learning rate moves every weight visibly."""
    torch.manual_seed(0)
    size = _SHAPE.patch * _SHAPE.side
    backbone = TimmViT(
        "vit_tiny_patch16_224", size, 3, _SHAPE.patch, embed_dim=32, depth=_SHAPE.depth, num_heads=_SHAPE.heads
    )
    node = compose(["model=mae"])["model"] | {
        "norm_pix_loss": norm_pix_loss,
        "decoder_embed_dim": 24,
        "decoder_depth": _SHAPE.decoder_depth,
        "decoder_num_heads": _SHAPE.decoder_heads,
    }
    node["optimizer"] |= {"base_lr": 0.032, "warmup_epochs": 1 / _TOTAL}  # 1e-3 with 8 images
    mae: MAE = build(node, backbone=backbone, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return mae.double()


def _batch(step: int) -> Batch:
    """Random images of random keys."""
    drawn = torch.Generator().manual_seed(step)
    size = _SHAPE.patch * _SHAPE.side
    images: Tensor = torch.randint(0, 256, (_BATCH, 3, size, size), dtype=torch.uint8, generator=drawn)
    return Batch(images, torch.zeros(_BATCH, dtype=torch.long), fold_indices(step, torch.arange(_BATCH)), step)
