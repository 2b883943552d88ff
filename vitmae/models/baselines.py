"""Trivial predictions on the same hidden patches, so that a masked loss means something.

Two of them: the same answer for every patch (the mean, or the class frequencies, of the training set's patches), and
an answer from the visible patches of the image alone (their mean, or their class frequencies). A model that learnt
something of images is well below both.

Shapes: B batch, n visible and k hidden patches, P values per patch, M predictions per patch, K classes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

_PSEUDO_PATCHES = 10.0
"""How many patches' worth the training set's class frequencies count beside those seen in the image."""


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
    """How often each class occurs over many batches (B, N, M) -> (K,), each counted once more than seen."""
    counts: Tensor | None = None
    for target in targets:
        seen = torch.bincount(target.flatten(), minlength=num_classes)
        counts = seen if counts is None else counts + seen
    if counts is None:
        raise ValueError("no batch to count classes in")
    return (counts + 1) / (counts + 1).sum()


def classification_baselines(visible: Tensor, hidden: Tensor, frequencies: Tensor) -> dict[str, Tensor]:
    """Cross-entropies of the training set's class frequencies, and of those among the image's visible patches.

    Args:
        visible: (B, n, M) classes.
        hidden: (B, k, M) classes.
        frequencies: (K,) from `class_frequencies`.
    """
    seen, asked = visible.flatten(1), hidden.flatten(1)  # (B, n * M), (B, k * M)
    counts = F.one_hot(seen, len(frequencies)).sum(dim=1)  # (B, K)
    predictions = visible.shape[2]
    weight = _PSEUDO_PATCHES * predictions
    in_image = (counts + weight * frequencies) / (seen.shape[1] + weight)  # (B, K)
    return {
        "loss_mean_patch": -frequencies.log()[asked].mean(),
        "loss_visible_mean": -in_image.log().gather(1, asked).mean(),
    }
