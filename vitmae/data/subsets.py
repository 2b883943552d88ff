"""Which images of a set: a share of each class, as a function of the seed."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitmae.data.cache import digest
from vitmae.data.preload import take_in
from vitmae.data.splits import EncodedImages, Images, Splits
from vitmae.errors import UserError
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


def take_parts(
    splits: Splits, in_chans: int, skip_unreadable: bool, val_fraction: float, seed: int
) -> tuple[Part, Part, Part | None]:
    """Training, validation and test images: checked, and in memory where they are small.

    Args:
        splits: of the set.
        in_chans: channels that images must have.
        skip_unreadable: leave out images that cannot be read.
        val_fraction: of each class, is set aside where the set has no validation split.
        seed: of that choice.

    Raises:
        UserError: see `vitmae.data.preload.take_in`.
    """

    def take(images: Images) -> Part:
        images = take_in(images, in_chans, skip_unreadable)
        readable = ~images.failed if isinstance(images, EncodedImages) else torch.ones(len(images), dtype=torch.bool)
        return Part(images, readable.nonzero()[:, 0])

    train = take(splits.train)
    if splits.val is None:
        val, train = divide(train, val_fraction, seed, "validation")
    else:
        val = take(splits.val)
    return train, val, None if splits.test is None else take(splits.test)


def divide(part: Part, fraction: float, seed: int, purpose: str) -> tuple[Part, Part]:
    """A fraction of each class, and the rest, both in the order of ``part``.

    A class of n images gives round(fraction * n), so a smaller fraction is a part of a larger one. Images
    without a label (-1) count as one class.

    Args:
        part: the images.
        fraction: in [0, 1].
        seed: of the choice.
        purpose: a word that gives another choice with the same seed.
    """
    chosen = _standing(part.labels, seed, purpose) <= fraction
    return Part(part.images, part.indices[chosen]), Part(part.images, part.indices[~chosen])


def at_most(part: Part, limit: int | None, seed: int, purpose: str) -> Part:
    """``limit`` images in the order of ``part``, the classes in the proportions that they have there; None: all."""
    first = _standing(part.labels, seed, purpose).argsort(stable=True)[:limit]
    return Part(part.images, part.indices[first.sort().values])


def fingerprint(part: Part) -> str:
    """A key that changes with the images, their order and their labels; at most a thousand files are read."""
    sample = torch.linspace(0, len(part.images) - 1, min(len(part.images), _MOST_LOOKED_AT)).long().tolist()
    return digest(part.images.fingerprint(sample), part.indices.numpy().data, part.labels.numpy().data)


def _standing(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """How far from the front each image stands in a random order of its class: labels (n,) -> (n,) in (0, 1)."""
    standing = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = permutation(len(members), seed, purpose, label)
        standing[members[order]] = (torch.arange(len(members)) + 0.5).double() / len(members)
    return standing


def refuse_lost_classes(train: Part, class_names: Sequence[str] | None) -> None:
    """Refuse a fraction of the training images that leaves out a whole class, or all.

    Raises:
        UserError: names the class.
    """
    remedy = "raise data.train_fraction or lower data.val_fraction"
    if not len(train.indices):
        raise UserError(f"no training image is left: {remedy}")
    kept = set(train.labels.unique().tolist())
    for label, count in zip(*train.images.labels.unique(return_counts=True), strict=True):
        if class_names and int(label) not in kept and label >= 0:
            raise UserError(
                f"class {class_names[int(label)]} ({int(count)} images) is left without a training image: {remedy}"
            )
