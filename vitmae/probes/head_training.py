"""The training of heads by gradient descent: the order of the images, the learning rate, the loop.

A sweep over learning rates trains all of its heads at once, on the same batches: the features are read once for all of
them, and they differ in the learning rate only.

Shapes: M images, N patches, D width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vitmae.errors import UserError
from vitmae.randomness import permutation

WEIGHT_DECAY = 0.01  # of AdamW

ROWS = 64  # images at a time, so that working copies stay small


@dataclass(frozen=True)
class Sweep:
    """How a head is trained for each of several learning rates.

    Attributes:
        base_lrs: the candidates, per 256 images: the peak learning rate is base_lr * batch_size / 256.
        epochs: passes over the training images.
        warmup_epochs: epochs of warm-up; fewer than ``epochs``.
        batch_size: at most; a smaller training set is one batch.

    Raises:
        UserError: there is no learning rate, or ``warmup_epochs`` is not below ``epochs``.
    """

    base_lrs: Sequence[float]
    epochs: int
    warmup_epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        if not self.base_lrs:
            raise UserError("a probe needs a learning rate: give base_lrs at least one")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(
                f"a probe of {self.epochs} epochs cannot warm up for {self.warmup_epochs}: choose fewer warm-up epochs"
            )


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """The learning rate at a step divided by its peak: linear from 0, then half a cosine to 0.

    MAE's schedule, per iteration (https://arxiv.org/abs/2111.06377, tables 8 to 11).

    Args:
        step: from 0 to ``steps`` - 1.
        steps: of the whole run.
        warmup_steps: the step of the peak; less than ``steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2


def epoch_batches(num_images: int, batch_size: int, epochs: int, *key: int | str) -> Iterator[Tensor]:
    """Ids of batch after batch, (batch_size,) int64, in an order that is a function of (key, epoch).

    Images after the last full batch of an epoch are left out, so that every step has the same weight. A set smaller
    than ``batch_size`` gives no batch.
    """
    for epoch in range(epochs):
        order = permutation(num_images, *key, "epoch", epoch)
        yield from order.split(batch_size)[: num_images // batch_size]


def fit_on_tokens(
    heads: Sequence[nn.Module],
    patches: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    sweep: Sweep,
    *key: int | str,
) -> None:
    """Train one head per learning rate on cached patch tokens, with AdamW.

    Args:
        heads: trained in place, on their device; in eval mode afterwards.
        patches: (M, N, D), of any floating type, and memory-mapped or not.
        targets: (M, ...).
        loss: outputs of a head and targets of a batch -> a scalar.
        sweep: one learning rate per head.
        key: of the order of the images, such as a seed.
    """
    batch_size = min(sweep.batch_size, len(patches))
    steps_per_epoch = len(patches) // batch_size
    groups = [
        {"params": list(head.parameters()), "lr": base_lr * batch_size / 256}
        for head, base_lr in zip(heads, sweep.base_lrs, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    steps, warmup_steps = sweep.epochs * steps_per_epoch, sweep.warmup_epochs * steps_per_epoch
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup_steps))
    device = next(heads[0].parameters()).device
    for ids in epoch_batches(len(patches), batch_size, sweep.epochs, *key):
        tokens = patches[ids].to(device, torch.float32)  # (B, N, D)
        expected = targets[ids].to(device)  # (B, ...)
        optimizer.zero_grad()
        for head in heads:  # one by one, so that only the outputs of one head are in memory
            loss(head(tokens), expected).backward()
        optimizer.step()
        schedule.step()
    for head in heads:
        head.eval()


@torch.no_grad()
def predict_on_tokens(head: nn.Module, patches: Tensor) -> Iterator[Tensor]:
    """The outputs of a head for cached patch tokens, `ROWS` images at a time: (M, N, D) -> (rows, ...)."""
    device = next(head.parameters()).device
    for rows in patches.split(ROWS):
        yield head(rows.to(device, torch.float32))


class Standardize(nn.Module):
    """Subtract the mean and divide by the standard deviation of the patch tokens of a set, per feature.

    On frozen features, the batch norm without scale and shift of a linear probe converges to this.

    Args:
        patches: of the training set: (M, N, D).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, patches: Tensor) -> None:
        super().__init__()
        total = patches.new_zeros(2, patches.shape[2], dtype=torch.float64)  # sum and sum of squares, (2, D)
        for rows in patches.split(ROWS):
            tokens = rows.double().flatten(0, 1)
            total += torch.stack([tokens.sum(0), tokens.square().sum(0)])
        mean, square = total / (patches.shape[0] * patches.shape[1])
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", (square - mean.square()).clamp_min(0).sqrt().float() + 1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardise: (B, N, D) -> (B, N, D)."""
        return (tokens - self.mean) / self.std
