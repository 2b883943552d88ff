"""Settings as a configuration gives them -> checked values, or one line that says what to set."""

import os
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from vitmae.data.crops import CROPS, View
from vitmae.errors import UserError


def plain(value: Any) -> Any:
    """The same in dicts, lists and scalars: a configuration's own containers know too much to travel."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def require(condition: bool, setting: str, value: Any, wanted: str) -> None:
    """Raise a `UserError` unless a setting of the data is as wanted."""
    if not condition:
        raise UserError(f"data.{setting}={value} must be {wanted}")


def require_flag(setting: str, value: Any) -> None:
    """Raise a `UserError` unless a setting is true or false."""
    require(isinstance(value, bool), setting, value, "true or false")


def require_number(setting: str, value: Any, least: float, most: float = inf, *, above: bool = False) -> None:
    """Raise a `UserError` unless a setting is a number from ``least``, or above it, to ``most``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = f"a number {'above' if above else 'from'} {least}" + (f" to {most}" if most < inf else "")
    require(is_number and least <= value <= most and not (above and value == least), setting, value, wanted)


def require_whole(setting: str, value: Any, least: int) -> None:
    """Raise a `UserError` unless a setting is a whole number from ``least``."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    require(is_whole and value >= least, setting, value, f"a whole number from {least}")


def image_size(value: int | Sequence[int]) -> tuple[int, int]:
    """One number, or [height, width] -> (height, width)."""
    sides = list(value) if isinstance(value, Sequence) else [value, value]
    whole = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    require(whole, "img_size", value, "a positive number of pixels, or [height, width]")
    return sides[0], sides[1]


def training_view(
    size: tuple[int, int],
    crop: str,
    scale: Sequence[float] | None,
    ratio: Sequence[float] | None,
    hflip: bool,
) -> View:
    """How training images are seen."""
    require(crop in CROPS, "crop", crop, " or ".join(CROPS))
    if crop != "random_resized":
        for name, given in (("crop_scale", scale), ("crop_ratio", ratio)):
            require(given is None, name, given, f"unset with data.crop={crop}: it is of random_resized crops only")
        return View(size, crop, hflip=hflip)
    scale, ratio = _range("crop_scale", scale, 1), _range("crop_ratio", ratio, inf)
    default = View(size)
    return View(
        size,
        crop,
        scale=scale or default.scale,
        ratio=ratio or default.ratio,
        hflip=hflip,
    )


def _range(setting: str, given: Any, most: float) -> tuple[float, float] | None:
    """[smallest, largest], if it is given."""
    if given is None:
        return None
    pair = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    numbers = len(pair) == 2 and all(isinstance(side, int | float) for side in pair)
    wanted = "[smallest, largest], above 0" + ", at most 1" * (most == 1)
    require(numbers and 0 < pair[0] <= pair[1] <= most, setting, given, wanted)
    return float(pair[0]), float(pair[1])


def workers_for(num_workers: Any, processes: int) -> int:
    """How many workers a process has that decodes: the number given, or for "auto" its share of the cores, up to 16.

    Args:
        num_workers: the setting.
        processes: how many processes share this machine.
    """
    if num_workers != "auto":
        return int(num_workers)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, here // processes))
