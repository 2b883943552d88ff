"""The losses of two trivial predictions on the hidden patches: a useful model must be well below both.

The first predicts the same for every patch: the mean, or the class frequencies, of the training set's patches. The
second predicts from the visible patches of the image: their mean, or their class frequencies.

Shapes: B batch, n visible and k hidden patches, P values per patch, M predictions per patch, K classes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

_PSEUDO_PATCHES = 10.0
"""How many patches the training set's class frequencies count for, beside the visible patches of the image."""


def mean_over_patches(targets: Iterable[Tensor]) -> Tensor:
    """The mean patch of many batches (B, N, P) -> (P,)."""
    total, count = torch.zeros(()), 0
    for target in targets:
        total = total.to(target) + target.sum(dim=(0, 1))
        count += target.shape[0] * target.shape[1]
    return total / count


def regression_baselines(visible: Tensor, hidden: Tensor, mean_patch: Tensor, channels: int) -> dict[str, Tensor]:
    """Squared errors of the training set's mean patch, and of the mean colour of the image's visible pixels.

    Args:
        visible: (B, n, P) targets.
        hidden: (B, k, P) targets.
        mean_patch: (P,) from `mean_over_patches`.
        channels: C; the last axis of P runs over channels fastest.
    """
    colour = visible.reshape(len(visible), -1, channels).mean(dim=1)  # (B, C)
    colour = colour.repeat(1, hidden.shape[2] // channels)[:, None]  # (B, 1, P)
    return {
        "loss_mean_patch": (hidden - mean_patch).square().mean(),
        "loss_visible_mean": (hidden - colour).square().mean(),
    }


def class_frequencies(targets: Iterable[Tensor], num_classes: int) -> Tensor:
    """The frequency of each class over many batches (B, N, M) -> (K,); each class is counted once more than it occurs.

    Raises:
        ValueError: there is no batch.
    """
    counts: Tensor | None = None
    for target in targets:
        seen = torch.bincount(target.flatten(), minlength=num_classes)
        counts = seen if counts is None else counts + seen
    if counts is None:
        raise ValueError("no batch to count classes in")
    return (counts + 1) / (counts + 1).sum()


def classification_baselines(visible: Tensor, hidden: Tensor, frequencies: Tensor) -> dict[str, Tensor]:
    """Cross-entropies of the training set's class frequencies, and of those of the image's visible patches.

    Args:
        visible: (B, n, M) classes.
        hidden: (B, k, M) classes.
        frequencies: (K,) from `class_frequencies`.
    """
    weight = _PSEUDO_PATCHES * visible.shape[2]
    visible, hidden = visible.flatten(1), hidden.flatten(1)  # (B, n * M), (B, k * M)
    counts = F.one_hot(visible, len(frequencies)).sum(dim=1)  # (B, K)
    in_image = (counts + weight * frequencies) / (visible.shape[1] + weight)  # (B, K)
    return {
        "loss_mean_patch": -frequencies.log()[hidden].mean(),
        "loss_visible_mean": -in_image.log().gather(1, hidden).mean(),
    }
