"""Mean and standard deviation of a set, per channel, of pixels in [0, 1]: measured exactly, on integers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vitmae.data.splits import Stats
from vitmae.errors import UserError

_LEAST_STD = 1 / 255  # of a constant channel, so that a pixel that differs is not divided by 0


def measure(batches: Iterable[Tensor]) -> Stats:
    """Measure images: each (B, C, H, W) uint8. The sums are integers, so batching and order change no digit."""
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


def given(stats: object, in_chans: int) -> Stats:
    """Statistics from the settings: ``{mean: [...], std: [...]}``.

    Raises:
        UserError: they are not one mean and one positive deviation per channel, in the scale of [0, 1].
    """
    try:
        mean, std = tuple(map(float, stats["mean"])), tuple(map(float, stats["std"]))  # type: ignore[index]
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
