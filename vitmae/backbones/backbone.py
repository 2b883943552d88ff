"""The interface of a backbone, the encoder of an objective.

Objectives, probes and figures use a backbone only through this interface. A backbone has no head and no mask token.

Shapes: B batch, C channels, H W image, N = grid_h * grid_w patches, n chosen ones, D width, prefix tokens first
(CLS, then registers).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitmae.errors import UserError
from vitmae.tokens.patches import Size


class Backbone(nn.Module):
    """A vision transformer without a head, in two halves: patches to tokens, tokens to latent.

    Attributes:
        img_size: (H, W) in pixels.
        in_chans: C.
        grid_size: (grid_h, grid_w).
        patch_size: (patch_h, patch_w): the pixels under one token.
        embed_dim: D.
        depth: number of transformer blocks.
        num_heads: attention heads per block.
        num_prefix_tokens: how many tokens come before the patches.
        has_cls: whether the first of them is a CLS token.
    """

    img_size: Size
    in_chans: int
    grid_size: Size
    patch_size: Size
    embed_dim: int
    depth: int
    num_heads: int
    num_prefix_tokens: int
    has_cls: bool
    _frozen: Sequence[nn.Module] = ()

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    @abstractmethod
    def pos_embed(self) -> Tensor:
        """Positions of the patches, without those of prefix tokens: (1, N, D)."""

    @abstractmethod
    def fix_positions(self) -> None:
        """Replace learned positions by fixed 2-D sine-cosine ones, in a buffer."""

    @abstractmethod
    def init_xavier(self) -> None:
        """Initialise as the MAE paper does: Xavier-uniform, tokens normal with deviation 0.02."""

    def init_jax(self) -> None:
        """Initialise as the published code of https://arxiv.org/abs/2010.11929 does.

        Raises:
            UserError: the backbone has no such initialisation.
        """
        raise UserError(f"model.init=jax: {type(self).__name__} has no such initialisation: use model.init=backbone")

    @abstractmethod
    def remove_norm(self) -> None:
        """Remove the final norm, for a head with a norm of its own (a norm that the loss does not reach breaks DDP)."""

    @abstractmethod
    def patch_embed(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Project all patches, or those at `ids_keep` (B, n): (B, C, H, W) -> (B, n, D), without positions."""

    @abstractmethod
    def encode(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Run the blocks on tokens with positions added: (B, n, D) -> (B, prefix + n, D).

        With `ids` (B, k), it returns only these rows of the output, (B, k, D), and the last block computes only these.
        """

    @abstractmethod
    def macs(self, patches: int, read: int | None = None) -> int:
        """Multiply-accumulates of one image whose `patches` are projected and, with the prefix tokens, encoded.

        Args:
            patches: n.
            read: how many tokens of the output are computed (`ids` of `encode`); None: all.
        """

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """The layer that a parameter belongs to: 0 for embeddings, i + 1 for block i, depth + 1 for the rest."""

    @abstractmethod
    def first_parts(self, num_blocks: int) -> Sequence[nn.Module]:
        """The modules before block `num_blocks` (from 0): embeddings, dropout and the first blocks."""

    def freeze(self, num_blocks: int | Literal["all"]) -> None:
        """Freeze the embeddings and the first blocks: no gradient, no dropout, no drop path.

        Args:
            num_blocks: how many; 0 freezes nothing, not even the embeddings; all freezes everything, with the norm.

        Raises:
            UserError: the backbone has fewer blocks.
        """
        if num_blocks != "all" and not 0 <= num_blocks <= self.depth:
            raise UserError(
                f"model.freeze={num_blocks}: the backbone has {self.depth} blocks: choose at most "
                f"{self.depth}, or all for a linear probe"
            )
        last = self.depth + 1 if num_blocks == "all" else num_blocks
        if last == 0:
            return
        for name, parameter in self.named_parameters():
            if self.layer_of(name) <= last:
                parameter.requires_grad_(False)
        self._frozen = [self] if num_blocks == "all" else list(self.first_parts(last))
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode of all modules; frozen ones stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            for module in part.modules():
                module.training = False
        return self

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Encode images with nothing hidden: (B, C, H, W) -> (B, prefix + N, D), or the rows `ids` (B, k) of it."""
        return self.encode(self.patch_embed(images) + self.pos_embed, ids)


def patch_length(backbone: Backbone) -> int:
    """P: the values in one patch, patch_h * patch_w * C."""
    return backbone.patch_size[0] * backbone.patch_size[1] * backbone.in_chans


def all_ids(images: Tensor, backbone: Backbone) -> Tensor:
    """The positions of all patches, for each image: (B, N), without a copy."""
    return torch.arange(backbone.num_patches, device=images.device).expand(len(images), -1)


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases on every linear layer (https://arxiv.org/abs/2111.06377, appendix A.1)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def use_fused_attention(module: nn.Module, fused: bool) -> None:
    """Choose torch's fused attention kernel or an explicit softmax, in all attention layers inside a module.

    Both compute the same. Measured: in bf16 on a CPU the explicit softmax is 1.3 to 1.9 times faster, on a GPU the
    fused kernel is faster.
    """
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused  # type: ignore[assignment]
