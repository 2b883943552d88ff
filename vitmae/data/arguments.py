"""Arguments of the data module that depend on each other, checked together."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitmae.data.crops import View
from vitmae.errors import UserError


def plain(value: Any) -> Any:
    """A setting as dicts, lists and scalars, without the container classes of OmegaConf."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def image_size(value: int | Sequence[int]) -> tuple[int, int]:
    """One number, or [height, width] -> (height, width).

    Raises:
        UserError: there are more or fewer than two numbers.
    """
    sides = list(value) if isinstance(value, Sequence) else [value, value]
    if len(sides) != 2:
        raise UserError(f"data.img_size={value}: must be a number of pixels, or [height, width]")
    return sides[0], sides[1]


def training_view(
    size: tuple[int, int],
    crop: str,
    scale: tuple[float, float] | None,
    ratio: tuple[float, float] | None,
    hflip: bool,
) -> View:
    """How training images are cropped and flipped; only random_resized crops have a scale and a ratio.

    Raises:
        UserError: the limits of a range are in the wrong order.
    """
    for name, given in (("crop_scale", scale), ("crop_ratio", ratio)):
        if given is not None and given[0] > given[1]:
            raise UserError(f"data.{name}={list(given)}: must be [smallest, largest]")
    (least, most), (narrowest, widest) = scale or View.scale, ratio or View.ratio
    return View(size, crop, scale=(least, most), ratio=(narrowest, widest), hflip=hflip)
