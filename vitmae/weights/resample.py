"""Positions for another grid, patch projections for another patch size or number of channels: pure tensor functions.

The resampling itself is timm's.

Shapes: N = grid_h * grid_w patches, D width, C channels, (patch_h, patch_w) pixels.
"""

from math import isqrt

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from vitmae.tokens.patches import Size
from vitmae.tokens.positions import sincos_positions


def square_grid(num_patches: int) -> Size | None:
    """The grid of so many patches if it is a square; None if it cannot be one."""
    side = isqrt(max(num_patches, 0))
    return (side, side) if side and side * side == num_patches else None


def resample_positions(table: Tensor, old: Size, new: Size, num_prefix_tokens: int) -> Tensor:
    """Positions for another grid: (1, prefix + N_old, D) -> (1, prefix + N_new, D); prefix rows stay as they are.

    Bicubic in two dimensions, antialiased where the grid shrinks.
    """
    return resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens, verbose=False)


def is_sincos(patches: Tensor, grid_size: Size) -> bool:
    """Whether patch positions (1, N, D) are the fixed sine-cosine positions of their grid."""
    if patches.shape[2] % 4:
        return False
    return torch.allclose(patches.float().cpu(), sincos_positions(grid_size, patches.shape[2]), atol=1e-4)


def resample_projection(weight: Tensor, patch_size: Size, in_chans: int) -> Tensor:
    """A patch projection for other patches: (D, C_old, h_old, w_old) -> (D, C, patch_h, patch_w).

    Sizes: the new kernel gives for a resized patch what the old kernel gives for the patch
    (https://arxiv.org/abs/2212.08013, section 3.4). Channels: see `adapt_channels`.
    """
    return resample_patch_embed(adapt_channels(weight, in_chans), list(patch_size), verbose=False)


def adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    """A first convolution for other channels: (D, C_old, h, w) -> (D, C, h, w).

    To one channel: the sum, which gives for a grey image what the old kernel gives for three equal channels. To more:
    the old channels repeated and scaled by C_old / C, which keeps the size of the outputs. From three channels, timm
    does the same.
    """
    old = weight.shape[1]
    if in_chans == old:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    channels = torch.arange(in_chans, device=weight.device) % old
    return weight[:, channels] * (old / in_chans)
