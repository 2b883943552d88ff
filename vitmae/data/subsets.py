"""Some images of a split, and the choice of a share of each class by a seed."""

from typing import NamedTuple

import torch
from torch import Tensor

from vitmae.data.cache import digest
from vitmae.data.splits import Images
from vitmae.randomness import permutation

_MOST_LOOKED_AT = 1000


class Part(NamedTuple):
    """Some images of a split.

    Attributes:
        images: the split.
        indices: (n,) int64, which of them.
    """

    images: Images
    indices: Tensor

    @property
    def labels(self) -> Tensor:
        """(n,) int64."""
        return self.images.labels[self.indices]


def divide(part: Part, fraction: float, seed: int, purpose: str) -> tuple[Part, Part]:
    """A fraction of each class, and the rest, both in the order of ``part``.

    A class of n images gives round(fraction * n), so a smaller fraction is a part of a larger one. Images
    without a label (-1) count as one class.

    Args:
        part: the images.
        fraction: in [0, 1].
        seed: of the choice.
        purpose: part of the key, so that two purposes choose differently with one seed.
    """
    chosen = _standing(part.labels, seed, purpose) <= fraction
    return Part(part.images, part.indices[chosen]), Part(part.images, part.indices[~chosen])


def at_most(part: Part, limit: int | None, seed: int, purpose: str) -> Part:
    """``limit`` images in the order of ``part``, each class in its proportion; None: all images."""
    first = _standing(part.labels, seed, purpose).argsort(stable=True)[:limit]
    return Part(part.images, part.indices[first.sort().values])


def fingerprint(part: Part) -> str:
    """A hash that changes with the images, their order and their labels; at most a thousand files are read."""
    sample = torch.linspace(0, len(part.images) - 1, min(len(part.images), _MOST_LOOKED_AT)).long().tolist()
    return digest(part.images.fingerprint(sample), part.indices.numpy().data, part.labels.numpy().data)


def _standing(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """The place of each image in a random order of its class: labels (n,) -> (n,) in (0, 1), from first to last."""
    standing = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = permutation(len(members), seed, purpose, label)
        standing[members[order]] = (torch.arange(len(members)) + 0.5).double() / len(members)
    return standing
