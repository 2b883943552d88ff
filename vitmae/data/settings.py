"""Settings as a configuration gives them -> checked values, or one line that says what to set."""

import os
from collections.abc import Mapping, Sequence
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


def image_size(value: int | Sequence[int]) -> tuple[int, int]:
    """One number, or [height, width] -> (height, width)."""
    sides = (value, value) if isinstance(value, int) else tuple(value)
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
    for name, given, most in (("crop_scale", scale, 1), ("crop_ratio", ratio, float("inf"))):
        ordered = given is None or (len(given) == 2 and 0 < given[0] <= given[1] <= most)
        require(ordered, name, given, "[smallest, largest], above 0" + ", at most 1" * (most == 1))
    default = View(size)
    return View(
        size,
        crop,
        scale=(scale[0], scale[1]) if scale else default.scale,
        ratio=(ratio[0], ratio[1]) if ratio else default.ratio,
        hflip=hflip,
    )


def cores() -> int:
    """How many processor cores this process may use, its share where several processes run on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
