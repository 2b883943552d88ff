"""What `vitmae.data` gives to `vitmae.models`: one batch of images, labels and random keys.

Shapes: B batch, C channels, H W image height and width.
"""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch, the same from memory and from files.

    Attributes:
        images: (B, C, H, W) uint8, cropped and flipped, not normalised: each objective has its own mean and std.
        labels: (B,) int64; -1 if the set has no labels.
        keys: (B,) int64, one random key per sample, made from (seed, epoch, index, repeat) in training and from
            (seed, index) in validation. Masks are drawn from it, so they differ between samples and epochs, and
            the number of workers or ranks cannot change them.
        key: the random key of the batch, for what is drawn per batch: dropout, drop path, mixup.
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    key: int
