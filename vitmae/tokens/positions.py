"""Position embeddings: fixed 2-D sine-cosine ones, and resampling to another grid. Pure tensor functions.

Shapes: N = grid_h * grid_w patches, D width.
"""

import torch
from torch import Tensor

from vitmae.tokens.patches import Size


def sincos_positions(grid_size: Size, embed_dim: int, num_prefix_tokens: int = 0) -> Tensor:
    """Fixed 2-D sine-cosine positions: (1, prefix + N, D), float32; the rows of prefix tokens are 0.

    The first half of the width encodes the column, the second half the row; each half is
    [sin(w_i x), cos(w_i x)] with w_i = 10000^(-i / (D/4)) (the published code of https://arxiv.org/abs/2111.06377).

    Raises:
        ValueError: D is not divisible by 4.
    """
    if embed_dim % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, not {embed_dim}")
    grid_h, grid_w = grid_size
    quarter = embed_dim // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)  # (D/4,)

    def encode(coordinate: Tensor) -> Tensor:
        angle = coordinate.to(torch.float64)[:, None] * omega  # (N, D/4)
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (N, D/2)

    row, column = torch.arange(grid_h), torch.arange(grid_w)
    table = torch.cat([encode(column.repeat(grid_h)), encode(row.repeat_interleave(grid_w))], dim=1)
    return torch.cat([table.new_zeros(num_prefix_tokens, embed_dim), table]).float()[None]
