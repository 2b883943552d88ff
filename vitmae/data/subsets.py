"""Which images of a set: a fraction of each class, as a function of the seed."""

import torch
from torch import Tensor

from vitmae.randomness import permutation


def fraction_of_each(labels: Tensor, fraction: float, seed: int, purpose: str) -> Tensor:
    """Choose a fraction of each class: labels (N,) int64 -> (N,) bool, a function of the seed and the purpose.

    A class of n images gives round(fraction * n), so a smaller fraction is a part of a larger one. Images
    without a label (-1) count as one class.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = permutation(len(members), seed, purpose, label)
        chosen[members[order[:int(fraction * len(members) + 0.5)]]] = True
    return chosen
