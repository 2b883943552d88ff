"""The images of a run: checked, in memory if they are small, and divided into training, validation and test.

splits of a source -> unreadable images left out -> validation images set aside -> statistics -> training fraction
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from vitmae.data.part_loader import PartLoaders
from vitmae.data.preload import take_in
from vitmae.data.splits import EncodedImages, Images, Splits, Stats
from vitmae.data.stats import choose_statistics
from vitmae.data.subsets import Part, divide
from vitmae.errors import UserError

SPLIT_SEED = 0
"""Of all runs, whatever their own seed: no run may train on the images that another one is validated on."""


class Parts(NamedTuple):
    """The images of a run.

    Attributes:
        train: what is trained on.
        val: what is validated on.
        test: what is scored at the end; None if the set has no test split.
        stats: of the training images, before a fraction of them is taken.
        encoded: the splits that are decoded during the run, where an image can turn out to be unreadable.
    """

    train: Part
    val: Part
    test: Part | None
    stats: Stats
    encoded: list[EncodedImages]

    @property
    def num_skipped(self) -> int:
        """Images that turned out to be unreadable so far, in all splits and all workers of this process."""
        return sum(int(images.failed.sum()) for images in self.encoded)


def make_parts(
    splits: Splits,
    loaders: PartLoaders,
    *,
    stats: Literal["auto"] | Mapping[str, Any] | None,
    val_fraction: float,
    train_fraction: float,
) -> Parts:
    """Check the images of a set, and choose those of a run.

    Args:
        splits: of the set.
        loaders: how its images become batches; also the seed of the choice of training images.
        stats: see `vitmae.data.stats.choose_statistics`.
        val_fraction: share of each class to set aside for validation, where the set has no validation split.
        train_fraction: share of each class to train on, after that.

    Raises:
        UserError: an image cannot be read (see `vitmae.data.preload.take_in`), the statistics do not fit the images, a
            class is left without a training image, or no image is left to train or to validate on.
    """

    def take(images: Images) -> Part:
        images = take_in(images, loaders.in_chans, loaders.skip_unreadable)
        readable = ~images.failed if isinstance(images, EncodedImages) else torch.ones(len(images), dtype=torch.bool)
        return Part(images, readable.nonzero()[:, 0])

    train = take(splits.train)
    if splits.val is None:
        val, train = divide(train, val_fraction, SPLIT_SEED, "validation")
    else:
        val = take(splits.val)
    test = None if splits.test is None else take(splits.test)
    statistics = choose_statistics(stats, splits.stats, train, loaders)
    train, _ = divide(train, train_fraction, loaders.seed, "training")
    _refuse_lost_classes(train, splits.class_names)
    if not len(val.indices):
        raise UserError("no image is left to validate on: raise data.val_fraction")
    encoded = [images for images in (splits.train, splits.val, splits.test) if isinstance(images, EncodedImages)]
    return Parts(train, val, test, statistics, encoded)


def _refuse_lost_classes(train: Part, class_names: Sequence[str] | None) -> None:
    """Refuse training images that lack a whole class, or that are none.

    Raises:
        UserError: names the class.
    """
    remedy = "raise data.train_fraction or lower data.val_fraction"
    if not len(train.indices):
        raise UserError(f"no training image is left: {remedy}")
    left = set(train.labels.unique().tolist())
    for label, count in zip(*train.images.labels.unique(return_counts=True), strict=True):
        if class_names and int(label) not in left and label >= 0:
            raise UserError(
                f"class {class_names[int(label)]} ({int(count)} images) is left without a training image: {remedy}"
            )
