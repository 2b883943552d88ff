"""What the data hands to the objectives: the one contract between `vitmae.data` and `vitmae.models`.

Shapes: B batch, C channels, H W image height and width.
"""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch, the same from memory and from files.

    Attributes:
        images: (B, C, H, W) uint8, cropped and flipped, not normalised: an objective owns its mean and std.
        labels: (B,) int64; -1 where a set has no labels.
        keys: (B,) int64, one random key per sample: of (seed, epoch, index, repeat) in training, of (seed, index) in
            validation. Masks are drawn from it, so they differ between samples, epochs and ranks, and nothing else
            can change them.
        key: the batch's own random key, for what is drawn per batch (dropout, drop path, mixup).
    """

    images: Tensor
    labels: Tensor
    keys: Tensor
    key: int
