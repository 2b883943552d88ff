"""Mean and standard deviation of a set, per channel, of pixels in [0, 1]: measured exactly, on integers."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vitmae.data.cache import digest, remember
from vitmae.data.part_loader import PartLoaders
from vitmae.data.samplers import OrderedRequests
from vitmae.data.splits import EncodedImages, MemoryImages, Stats
from vitmae.data.subsets import Part
from vitmae.errors import UserError

_MOST_MEASURED = 2048  # images that are decoded or drawn; sets in memory are measured whole
_LEAST_STD = 1 / 255  # of a constant channel, so that a pixel that differs is not divided by 0


def measure(batches: Iterable[Tensor]) -> Stats:
    """Measure batches (B, C, H, W) uint8. The sums are integers, so order and size of the batches change nothing."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for images in batches:
        values = images.to(torch.int32)
        count += values[:, 0].numel()
        total = total + values.sum(dim=(0, 2, 3))  # (C,)
        squares = squares + values.square().sum(dim=(0, 2, 3))
    mean = total.double() / count
    variance = squares.double() / count - mean.square()
    std = variance.clamp(min=0).sqrt() / 255
    return Stats(tuple((mean / 255).tolist()), tuple(std.clamp(min=_LEAST_STD).tolist()))


def choose_statistics(
    setting: Literal["auto"] | Mapping[str, Any] | None, known: Stats | None, train: Part, loaders: PartLoaders
) -> Stats:
    """The statistics of a set: those that the setting gives, those that the source knows, or measured ones.

    Args:
        setting: ``data.stats``.
        known: of the source.
        train: the training images; in memory they are all measured, otherwise 2,048 of them, once.
        loaders: makes their batches as evaluation sees them.

    Raises:
        UserError: see `given`.
    """
    in_chans = loaders.in_chans
    if isinstance(setting, Mapping):
        return given(setting, in_chans)
    if setting is None and known and len(known.mean) == in_chans:
        return known
    if isinstance(train.images, MemoryImages):
        return measure(train.images.read(some) for some in train.indices.split(4096))
    chosen = torch.linspace(0, len(train.indices) - 1, min(len(train.indices), _MOST_MEASURED)).long()
    part = Part(train.images, train.indices[chosen])
    loader = loaders.load(part, OrderedRequests(len(chosen), 64))
    if not isinstance(train.images, EncodedImages):
        return measure(batch.images for batch in loader)
    fingerprint = train.images.fingerprint(part.indices.tolist())
    key = digest(fingerprint, loaders.view.size, in_chans, loaders.crop_pct_of(train.images))
    mean, std = remember("stats", key, lambda: measure(batch.images for batch in loader))
    return Stats(tuple(mean), tuple(std))


def given(stats: Mapping[str, Any], in_chans: int) -> Stats:
    """Statistics from the settings: ``{mean: [...], std: [...]}``.

    Raises:
        UserError: they are not one mean and one positive deviation per channel, of pixels in [0, 1].
    """
    try:
        mean, std = tuple(map(float, stats["mean"])), tuple(map(float, stats["std"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"data.stats={stats} is neither auto, null nor {{mean: [...], std: [...]}}") from None
    if not len(mean) == len(std) == in_chans:
        raise UserError(
            f"data.stats has {len(mean)} means and {len(std)} deviations for {in_chans} channels: "
            "give one of each per channel, or set data.stats=auto"
        )
    if not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise UserError(f"data.stats={stats} are not of pixels in [0, 1]: divide them by 255, or set data.stats=auto")
    return Stats(mean, std)
