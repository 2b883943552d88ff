"""A mask as a user gives it -> hidden patches: a ratio, a kind, a mask of the user's own, or the file of a picture.

Shapes: B images, H W image, N = grid_h * grid_w patches.
"""

import os
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitmae.data.crops import central_boxes, resize_mask
from vitmae.data.decode import UnreadableImage, decode
from vitmae.errors import UserError
from vitmae.files import open_file, reason_of, user_path
from vitmae.models.protocols import Reconstructs
from vitmae.tokens.masking import Mask, mask_from_tensor
from vitmae.tokens.patches import Size
from vitmae.trained.images import Preprocessing

MaskLike = float | Literal["random", "block", "grid"] | np.ndarray[Any, Any] | Tensor | None
"""A ratio; a kind, at the ratio of the training; or a mask of the user's own, True where hidden, of patches
(grid_h, grid_w) or pixels (H, W), one for all images or one each; None: as in training."""


_KINDS = (int, float, str, np.ndarray, Tensor)
_ALLOWED = "a ratio, one of random, block, grid, or an array, True where hidden"


def patch_mask(mask: Tensor, img_size: Size, grid_size: Size) -> Tensor:
    """Patches (grid_h, grid_w) or pixels (H, W), or (B, …) of them -> hidden patches (1 or B, grid_h, grid_w).

    A patch is hidden if any of its pixels is hidden.

    Raises:
        UserError: the mask has another size.
    """
    planes = mask[None] if mask.ndim == 2 else mask
    if planes.ndim == 3 and planes.shape[1:] == grid_size:
        return planes
    if planes.ndim != 3 or planes.shape[1:] != img_size:
        shapes = f"{grid_size} for patches or {img_size} for pixels"
        raise UserError(f"the mask has shape {tuple(mask.shape)}: must be {shapes}")
    cells = planes.unflatten(1, (grid_size[0], -1)).unflatten(3, (grid_size[1], -1))  # (B, grid_h, ph, grid_w, pw)
    return cells.any(dim=4).any(dim=2)


def hidden_patches(mask: MaskLike, keys: Tensor, objective: Reconstructs, img_size: Size, grid_size: Size) -> Mask:
    """The hidden patches (B, N) that a mask stands for.

    Args:
        mask: as the user gives it.
        keys: one random key per image (B,), for masks that are drawn.
        objective: draws masks by ratio and kind.
        img_size: (H, W).
        grid_size: (grid_h, grid_w).

    Raises:
        UserError: the ratio is not in [0, 1], the kind does not exist, or the mask has another size.
    """
    if mask is not None and (isinstance(mask, bool) or not isinstance(mask, _KINDS)):
        raise UserError(f"mask={mask!r} is of type {type(mask).__name__}: must be {_ALLOWED}")
    if mask is None or isinstance(mask, str | float | int):
        ratio = None if mask is None or isinstance(mask, str) else float(mask)
        kind = None if mask is None else mask if isinstance(mask, str) else "random"
        if kind not in (None, "random", "block", "grid"):
            raise UserError(f"mask={kind}: must be {_ALLOWED}")
        if ratio is not None and not 0 <= ratio <= 1:  # also true of nan
            raise UserError(f"mask={mask}: must be a ratio between 0 and 1")
        try:
            return objective.draw_mask(keys, ratio, kind)
        except UserError as error:
            raise UserError(str(error).replace("model.mask_ratio=", "mask=")) from error
    own = torch.from_numpy(mask) if isinstance(mask, np.ndarray) and mask.dtype.kind in "buif" else mask
    if not isinstance(own, Tensor) or own.is_complex() or bool(own.isnan().any()):
        raise UserError(f"mask is an array of type {mask.dtype}: must hold True or False, or numbers, True where > 0")
    planes = patch_mask(own.cpu() > 0, img_size, grid_size)
    if len(planes) not in (1, len(keys)):
        raise UserError(f"mask has {len(planes)} planes for {len(keys)} images: give one for all, or one for each")
    return mask_from_tensor(planes.expand(len(keys), -1, -1))


def read_mask(mask: float | str | None, preprocess: Preprocessing, grid_size: Size) -> MaskLike:
    """The mask that a setting names: a ratio, a kind, or the path of a picture, which hides where it is bright.

    A picture is cropped and resized like the images, so it may be painted over one of them.

    Raises:
        UserError: the setting is something else, or the picture cannot be read.
    """
    if mask is None or not isinstance(mask, str) or mask in ("random", "block", "grid"):
        return mask  # type: ignore[return-value]
    path = user_path(mask)
    if not os.path.isfile(path):
        raise UserError(f"mask={mask}: must be a ratio, random, block, grid, or the file of a picture")
    try:
        with open_file(path) as file:
            pixels = decode(file.read(), 1, mask)  # (height, width, 1)
    except (UnreadableImage, OSError) as error:
        reason = reason_of(error).removeprefix(f"{mask}: ")
        raise UserError(f"mask={mask} cannot be read ({reason}): give another picture") from error
    plane = torch.from_numpy(pixels[..., 0]) > 127
    if plane.shape == grid_size:
        return plane
    heights, widths = torch.tensor(plane.shape)[:, None]
    box = central_boxes(heights, widths, preprocess.img_size, preprocess.crop_pct)[0]
    return resize_mask(plane, box, preprocess.img_size)
