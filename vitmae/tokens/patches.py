"""Images as sequences of patches, and back. Pure tensor functions.

Shapes: B batch, C channels, H W image, (grid_h, grid_w) patches of (patch_h, patch_w) pixels,
N = grid_h * grid_w, P = patch_h * patch_w * C, n chosen patches, D any width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, int]


def pair(value: int | Sequence[int]) -> Size:
    """``16`` -> (16, 16) and ``[h, w]`` -> (h, w).

    Raises:
        ValueError: a sequence does not have two entries.
    """
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def patchify(images: Tensor, patch_size: Size) -> Tensor:
    """Cut images into patches, row by row: (B, C, H, W) -> (B, N, P), values in the order (patch_h, patch_w, C).

    The order is that of the published MAE weights (https://arxiv.org/abs/2111.06377).
    """
    batch, channels, height, width = images.shape
    patch_h, patch_w = patch_size
    grid_h, grid_w = height // patch_h, width // patch_w
    cells = images.reshape(batch, channels, grid_h, patch_h, grid_w, patch_w)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid_h * grid_w, patch_h * patch_w * channels)


def unpatchify(patches: Tensor, grid_size: Size, patch_size: Size) -> Tensor:
    """The inverse of `patchify`: (B, N, P) -> (B, C, H, W)."""
    batch = patches.shape[0]
    (grid_h, grid_w), (patch_h, patch_w) = grid_size, patch_size
    channels = patches.shape[2] // (patch_h * patch_w)
    cells = patches.reshape(batch, grid_h, grid_w, patch_h, patch_w, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid_h * patch_h, grid_w * patch_w)


def paint(values: Tensor, grid_size: Size, patch_size: Size) -> Tensor:
    """One value per patch as an image: (B, N, C) -> (B, C, H, W), each patch filled with its value."""
    patch_h, patch_w = patch_size
    return unpatchify(values.repeat(1, 1, patch_h * patch_w), grid_size, patch_size)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens by position: (B or 1, N, D) and ids (B, n) -> (B, n, D).

    Tokens with a first dimension of 1 (positions that a batch shares) are not copied for each image.
    """
    if tokens.shape[0] == 1:
        return tokens[0][ids]
    first = torch.arange(ids.shape[0], device=ids.device)[:, None] * tokens.shape[1]  # (B, 1) rows of all images
    chosen = tokens.reshape(-1, tokens.shape[2]).index_select(0, (first + ids).flatten())
    return chosen.view(*ids.shape, -1)


def standardize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Standardise each patch by its own mean and unbiased variance: (B, N, P) -> (B, N, P).

    This is the target of ``norm_pix_loss``: (x - mean) / sqrt(var + 1e-6), with Bessel's correction
    (https://arxiv.org/abs/2111.06377, section 3 and the published code).
    """
    centered = patches - patches.mean(dim=-1, keepdim=True)
    var = centered.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)  # (B, N, 1)
    return centered * torch.rsqrt(var + eps)  # torch.var_mean takes ten times as long on a processor
