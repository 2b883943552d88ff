"""What heads that are trained by gradient descent share: the order of the images and the learning rate.

A sweep over learning rates trains all of its heads side by side, on the same batches: one pass over the features
serves them all, and they differ in the learning rate alone.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from vitmae.errors import UserError
from vitmae.randomness import permutation


def check_schedule(epochs: int, warmup_epochs: int) -> None:
    """Refuse a warm-up that leaves nothing of the run.

    Raises:
        UserError: unless 0 <= ``warmup_epochs`` < ``epochs``.
    """
    if not 0 <= warmup_epochs < epochs:
        raise UserError(
            f"a probe of {epochs} epochs cannot warm up for {warmup_epochs}: choose fewer warm-up epochs"
        )


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at a step: linear from 0, then half a cosine to 0.

    MAE's schedule, per iteration (https://arxiv.org/abs/2111.06377, tables 8 to 11).

    Args:
        step: from 0 to ``steps`` - 1.
        steps: of the whole run.
        warmup_steps: when the peak is reached; less than ``steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2


def epoch_batches(num_images: int, batch_size: int, epochs: int, *key: int | str) -> Iterator[Tensor]:
    """Ids of batch after batch, (batch_size,) int64, in an order that each epoch draws anew from (key, epoch).

    What is left of an epoch after the last full batch is not seen in that epoch, so that every step has the same
    weight. A set smaller than ``batch_size`` would give no batch.
    """
    for epoch in range(epochs):
        order = permutation(num_images, *key, "epoch", epoch)
        yield from order.split(batch_size)[: num_images // batch_size]
