"""What a vision transformer has learned: filters, positions, attention.

The pictures are those of https://arxiv.org/abs/2010.11929, figures 6, 7 and 11. All are pure tensor
functions, except `attention_maps`, which runs a backbone.

Shapes: B images, L blocks, h heads, T tokens, N = grid_h * grid_w patches, C channels, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitmae.backbones.backbone import Backbone, use_fused_attention
from vitmae.tokens.patches import Size


def patch_filters(weight: Tensor, count: int = 28) -> Tensor:
    """Principal components of a patch projection as pictures: (D, C, ph, pw) -> (count, C, ph, pw) in [0, 1].

    Each is scaled separately, with 0 at 0.5; the first ones explain the most variance of the projection.
    """
    flat = weight.detach().float().flatten(1)  # (D, P)
    components = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh[:count]  # (count, P)
    largest = components.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    return (0.5 + components / (2 * largest)).unflatten(1, weight.shape[1:])


def position_similarity(positions: Tensor, grid_size: Size) -> Tensor:
    """The cosine similarity of each patch's position to all others: (1, N, D) -> (N, grid_h, grid_w) in [-1, 1]."""
    unit = F.normalize(positions[0].detach().float(), dim=1)  # (N, D)
    return (unit @ unit.T).unflatten(1, grid_size)


@torch.no_grad()
def attention_maps(backbone: Backbone, images: Tensor) -> Tensor:
    """Every attention weight of every block: normalised images (B, C, H, W) -> (L, B, h, T, T); rows sum to 1.

    The result holds L * B * h * T^2 numbers, so pass a few images at a time.
    """
    # timm's AttentionExtract gives the same numbers, but leaves its hooks in the model; its fx mode cannot trace it
    maps: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        maps.append(inputs[0].float().cpu())

    attentions: list[Any] = [block.attn for block in backbone.vit.blocks]  # type: ignore[union-attr]
    fused = [attention.fused_attn for attention in attentions]
    hooks = [attention.attn_drop.register_forward_hook(keep) for attention in attentions]
    use_fused_attention(backbone, False)  # the fused kernel does not return its weights
    try:
        backbone(images)
    finally:
        for attention, was_fused, hook in zip(attentions, fused, hooks, strict=True):
            attention.fused_attn = was_fused
            hook.remove()
    return torch.stack(maps)


def attention_distance(maps: Tensor, grid_size: Size, patch_size: Size) -> Tensor:
    """How far each head looks, in pixels: (L, B, h, T, T) -> (L, h).

    The mean distance between the centres of two patches, weighted by attention, over patches and images. Attention to
    prefix tokens, which have no place in the image, is left out.
    """
    rows, columns = torch.meshgrid(torch.arange(grid_size[0]), torch.arange(grid_size[1]), indexing="ij")
    places = torch.stack([rows.flatten() * patch_size[0], columns.flatten() * patch_size[1]], dim=1).float()
    distance = torch.cdist(places, places)  # (N, N)
    among_patches = maps[..., -len(places) :, -len(places) :]  # (L, B, h, N, N)
    among_patches = among_patches / among_patches.sum(dim=-1, keepdim=True)
    return (among_patches * distance).sum(dim=-1).mean(dim=(1, 3))


def attention_rollout(maps: Tensor, grid_size: Size) -> Tensor:
    """How much each input patch contributes to the output: (L, B, h, T, T) -> (B, grid_h, grid_w), summing to 1.

    Attention rollout (https://arxiv.org/abs/2005.00928): average over heads, mix each block half and half with its
    residual, multiply all blocks. The output is CLS, or the mean of the patches for a backbone without CLS.
    """
    num_patches = grid_size[0] * grid_size[1]
    tokens = maps.shape[-1]
    mixed = (maps.mean(dim=2) + torch.eye(tokens)) / 2  # (L, B, T, T)
    rolled = mixed[0]
    for block in mixed[1:]:
        rolled = block @ rolled
    output = rolled[:, 0] if tokens > num_patches else rolled.mean(dim=1)  # (B, T)
    patches = output[:, -num_patches:]
    return (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, grid_size)
