"""The matrix products of one image, counted from the built modules.

The count includes the multiply-accumulates (MACs) of linear layers, attention and convolutions that an objective needs:
MAE projects its visible patches and predicts its hidden ones, and a last block computes only the tokens that are read.
The published code computes all of them: 2.5 % more for ViT-B/16, and 6.7 % more for a classifier on its CLS token. The
count does not include norms, GELU, softmax and the optimiser, although on some machines they take longer.
"""

import copy
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitmae.backbones.blocks import Block


def blocks_macs(blocks: nn.Sequential, tokens: int, read: int | None = None) -> int:
    """MACs of transformer blocks on `tokens` tokens, of which `read` are computed by the last block (None: all).

    Each token is multiplied by each matrix once, and in attention by each token twice.
    """
    total = 0
    for block in blocks:
        matrices = sum(parameter.numel() for parameter in block.parameters() if parameter.ndim == 2)
        width = cast(Any, block).attn.proj.in_features
        total += tokens * matrices + 2 * tokens * tokens * width
    return int(total) - unread_macs(blocks[-1], tokens, read)


def unread_macs(last: nn.Module, tokens: int, read: int | None) -> int:
    """The MACs that a last block saves if it computes only `read` of its tokens.

    Of the other tokens, it computes only queries, keys and values.
    """
    if read is None or not isinstance(last, Block):
        return 0
    after = (last.attn.proj, last.mlp.fc1, last.mlp.fc2)
    each = sum(layer.weight.numel() for layer in after) + 2 * tokens * last.attn.proj.in_features
    return int((tokens - read) * each)


def convolution_macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of a module of convolutions on one image (C, H, W), counted by torch on a copy without memory."""
    stem = copy.deepcopy(module).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stem(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2
