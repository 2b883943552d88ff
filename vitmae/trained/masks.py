"""What a user wants hidden -> which patches are: a ratio, a kind, a mask of their own, or the file of a picture.

Shapes: B images, H W image, N = grid_h * grid_w patches.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitmae.data.crops import central_boxes, resize_mask
from vitmae.data.decode import UnreadableImage, decode
from vitmae.errors import UserError
from vitmae.tokens.patches import Size
from vitmae.trained.images import Preprocessing

MaskLike = float | Literal["random", "block", "grid"] | np.ndarray[Any, Any] | Tensor | None
"""A ratio; a kind, at the ratio of the training; or one's own, True where hidden, for the patches (grid_h, grid_w) or
the pixels (H, W), one for all images or one each; None: as in training."""


def patch_mask(mask: Tensor, img_size: Size, grid_size: Size) -> Tensor:
    """Which patches a mask hides: of patches (grid_h, grid_w) or pixels (H, W), or (B, …) -> (1 or B, grid_h, grid_w).

    A patch is hidden if any of its pixels is.

    Raises:
        UserError: the mask has another size.
    """
    planes = mask[None] if mask.ndim == 2 else mask
    if planes.ndim == 3 and planes.shape[1:] == grid_size:
        return planes
    if planes.ndim != 3 or planes.shape[1:] != img_size:
        shapes = f"{grid_size} for patches or {img_size} for pixels"
        raise UserError(f"the mask has shape {tuple(mask.shape)}: it must have {shapes}")
    cells = planes.unflatten(1, (grid_size[0], -1)).unflatten(3, (grid_size[1], -1))  # (B, grid_h, ph, grid_w, pw)
    return cells.any(dim=4).any(dim=2)


def read_mask(mask: float | str | None, preprocess: Preprocessing, grid_size: Size) -> MaskLike:
    """A mask as a setting gives it: a ratio, a kind, or the path of a picture, which hides where it is bright.

    A picture is cropped and resized as the images are, so it may be drawn on one of them.

    Raises:
        UserError: it is none of these, or the picture cannot be read.
    """
    if mask is None or not isinstance(mask, str) or mask in ("random", "block", "grid"):
        return mask  # type: ignore[return-value]
    path = Path(mask).expanduser()
    if not path.is_file():
        raise UserError(f"mask={mask}: must be a ratio, random, block, grid, or the file of a picture")
    try:
        pixels = decode(path.read_bytes(), 1, mask)  # (height, width, 1)
    except UnreadableImage as error:
        raise UserError(f"mask={mask} cannot be read ({str(error).removeprefix(f'{mask}: ')})") from error
    plane = torch.from_numpy(pixels[..., 0]) > 127
    if plane.shape == grid_size:
        return plane
    heights, widths = torch.tensor(plane.shape)[:, None]
    box = central_boxes(heights, widths, preprocess.img_size, preprocess.crop_pct)[0]
    return resize_mask(plane, box, preprocess.img_size)
