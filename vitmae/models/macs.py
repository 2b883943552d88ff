"""The matrix products of one image, counted from the built modules: what a step must compute, whoever computes it.

Counted are the multiply-accumulates (MACs) of linear layers, attention and convolutions, and only those an objective
needs: MAE projects its visible patches and predicts its hidden ones, and a last block computes only the tokens that
are read (the published code does all of both, which is 2.5 % more for ViT-B/16, and 6.7 % for a classifier on its CLS
token). Norms, GELU, softmax and the optimiser are not counted, although on some machines they take longer.

Shapes: N patches, n visible ones, D width, E decoder width.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitmae.backbones.backbone import patch_length
from vitmae.backbones.blocks import Block
from vitmae.backbones.timm_vit import TimmViT
from vitmae.models.mae import MAE
from vitmae.models.masked_patch import MaskedPatch
from vitmae.models.objective import Objective
from vitmae.models.supervised import Supervised
from vitmae.tokens.masking import num_visible


def training_flops(objective: Objective) -> int:
    """FLOPs of one image in one training step: 2 per MAC, forward once and backward twice as much.

    The convention of https://arxiv.org/abs/2204.02311 (appendix B): what is recomputed, as by gradient checkpointing,
    does not count, nor is anything taken off for what is frozen.
    """
    return 6 * forward_macs(objective)


def forward_macs(objective: Objective) -> int:
    """MACs of one image's forward pass in training, from the images to the loss.

    Raises:
        TypeError: if it is none of this project's three objectives.
    """
    count = _COUNTS.get(type(objective))
    if count is None:
        raise TypeError(f"the matrix products of {type(objective).__name__} are not counted")
    return count(objective)


def patch_embed_macs(backbone: TimmViT, patches: int) -> int:
    """MACs of projecting so many patches; a hybrid's ResNet always sees the whole image."""
    if not backbone.is_hybrid:
        return patches * patch_length(backbone) * backbone.embed_dim
    stem = copy.deepcopy(backbone.vit.patch_embed).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stem(torch.empty(1, backbone.in_chans, *backbone.img_size, device="meta"))
    return counter.get_total_flops() // 2


def encoder_macs(backbone: TimmViT, patches: int, read: int | None = None) -> int:
    """MACs of the blocks on so many patches and the prefix tokens, of which `read` are read (None: all)."""
    tokens = patches + backbone.num_prefix_tokens
    return blocks_macs(backbone.vit.blocks, tokens) - unread_macs(backbone.vit.blocks[-1], tokens, read)


def unread_macs(last: nn.Module, tokens: int, read: int | None) -> int:
    """What a last block saves if only `read` of its tokens are read: all but queries, keys and values of the others."""
    if read is None or not isinstance(last, Block):
        return 0
    after = (last.attn.proj, last.mlp.fc1, last.mlp.fc2)
    each = sum(layer.weight.numel() for layer in after) + 2 * tokens * last.attn.proj.in_features
    return int((tokens - read) * each)


def blocks_macs(blocks: Iterable[nn.Module], tokens: int) -> int:
    """MACs of transformer blocks: each token meets each matrix once, and in attention each other token twice."""
    total = 0
    for block in blocks:
        matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
        width = cast(Any, block).attn.proj.in_features
        total += tokens * sum(matrix.numel() for matrix in matrices) + 2 * tokens * tokens * width
    return int(total)


def _mae(objective: MAE) -> int:
    backbone, decoder = cast(TimmViT, objective.backbone), objective.decoder
    patches = backbone.num_patches
    visible, tokens = patches - hidden_patches(objective), patches + backbone.num_prefix_tokens
    return (
        patch_embed_macs(backbone, visible)
        + encoder_macs(backbone, visible)
        + (visible + backbone.num_prefix_tokens) * decoder.embed.weight.numel()
        + blocks_macs(decoder.blocks, tokens)
        - unread_macs(decoder.blocks[-1], tokens, patches - visible)
        + (patches - visible) * decoder.pred.weight.numel()
    )


def _masked_patch(objective: MaskedPatch) -> int:
    backbone = cast(TimmViT, objective.backbone)
    patches = backbone.num_patches
    corrupted = hidden_patches(objective)
    encoder = patch_embed_macs(backbone, patches) + encoder_macs(backbone, patches, read=corrupted)
    return encoder + corrupted * objective.head.weight.numel()


def _supervised(objective: Supervised) -> int:
    backbone = cast(TimmViT, objective.backbone)
    patches = backbone.num_patches
    encoder = encoder_macs(backbone, patches, read=1 if objective.pool == "cls" else None)
    total = patch_embed_macs(backbone, patches) + encoder + objective.head.weight.numel()
    if objective.pool == "map":
        pool = objective.attn_pool
        one_query = sum(part.weight.numel() for part in (pool.q, pool.proj, pool.mlp.fc1, pool.mlp.fc2))
        total += patches * pool.kv.weight.numel() + one_query + 2 * patches * backbone.embed_dim
    return total


def hidden_patches(objective: MAE | MaskedPatch) -> int:
    """How many patches of an image an objective predicts."""
    patches = objective.backbone.num_patches
    if isinstance(objective, MAE) and objective.mask_kind == "grid":  # keeps one of each cell, not a rounded share
        return patches - round(patches * (1 - objective.mask_ratio))
    return patches - num_visible(patches, objective.mask_ratio)


_COUNTS: dict[type[Objective], Callable[..., int]] = {MAE: _mae, MaskedPatch: _masked_patch, Supervised: _supervised}
