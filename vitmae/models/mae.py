"""Masked autoencoder (https://arxiv.org/abs/2111.06377).

    images -> visible patches -> encoder -> add mask tokens -> decoder -> pixels

The encoder never sees a hidden patch. Only hidden patches are scored.

Shapes: B batch, C channels, H W image, N patches, n visible patches, D encoder width, E decoder width,
P = patch_h * patch_w * C.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitmae.backbones.backbone import Backbone, all_ids, init_xavier, patch_length
from vitmae.backbones.blocks import adopt_blocks, read_tokens
from vitmae.backbones.macs import blocks_macs
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.limits import check_arguments
from vitmae.models.baselines import mean_over_patches, regression_baselines
from vitmae.models.objective import Objective
from vitmae.models.protocols import HasBaselines, Panel, Reconstructs
from vitmae.recipe import Recipe
from vitmae.tokens.masking import Mask, MaskKind, check_mask, draw_mask, mask_from_tensor, num_visible
from vitmae.tokens.patches import gather_tokens, paint, patchify, standardize_patches, unpatchify
from vitmae.tokens.positions import sincos_positions

_MIN_VALUES = 16  # per patch, for a standardised target to be the default


class MAE(Objective, Reconstructs, HasBaselines):
    """Reconstruct hidden patches from visible ones.

    Args:
        backbone: the encoder.
        optimizer: the recipe (the paper's table 8).
        mean: see `Objective`.
        std: see `Objective`.
        mask_ratio: share of patches that is hidden in training.
        mask_kind: random, block or grid (the paper's table 1f).
        norm_pix_loss: predict each patch standardised by its own mean and variance; None: only patches of 16 values
            and more, because the variance of fewer values is mostly noise.
        fixed_positions: 2-D sine-cosine positions in encoder and decoder, as in the paper; otherwise learned ones.
        decoder_embed_dim: E; None: the paper's 512 for ViT-B and larger, and D for smaller encoders, for which the
            paper's decoder would be most of the work.
        decoder_depth: blocks; None: 8 for ViT-B and larger, 4 for smaller encoders.
        decoder_num_heads: heads; None: 16 for ViT-B and larger, those of the encoder for smaller ones.

    Raises:
        UserError: the patch grid cannot have this ratio or kind of mask, or the decoder's sizes do not fit each other.
    """

    title = "masked autoencoder"
    paper = "https://arxiv.org/abs/2111.06377"
    published_as = "vit_mae"
    mean_patch: Tensor

    @check_arguments("model")
    def __init__(
        self,
        backbone: Backbone,
        optimizer: Recipe,
        mean: Sequence[float],
        std: Sequence[float],
        mask_ratio: Annotated[float, Gt(0), Lt(1)] = 0.75,
        mask_kind: MaskKind = "random",
        norm_pix_loss: bool | None = None,
        fixed_positions: bool = True,
        decoder_embed_dim: Annotated[int, Ge(1)] | None = None,
        decoder_depth: Annotated[int, Ge(1), Le(1000)] | None = None,
        decoder_num_heads: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        super().__init__(backbone, optimizer, mean, std)
        check_mask(mask_kind, backbone.grid_size, mask_ratio)
        self.mask_ratio, self.mask_kind = mask_ratio, mask_kind
        self.fixed_positions = fixed_positions
        self.norm_pix_loss = patch_length(backbone) >= _MIN_VALUES if norm_pix_loss is None else norm_pix_loss
        if fixed_positions:
            backbone.fix_positions()
        self.decoder = Decoder(backbone, fixed_positions, decoder_embed_dim, decoder_depth, decoder_num_heads)
        backbone.init_xavier()
        init_xavier(self.decoder)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        self.register_buffer("mean_patch", torch.zeros(patch_length(backbone)))

    def took_effect(self) -> dict[str, Any]:
        """The decoder's sizes, read from the decoder."""
        return {
            "decoder_embed_dim": self.decoder.embed.out_features,
            "decoder_depth": len(self.decoder.blocks),
            "decoder_num_heads": self.decoder.num_heads,
        }

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the paper: squared error, averaged over the hidden patches of the batch."""
        images = self.normalize(batch.images)  # (B, C, H, W)
        mask = self.draw_mask(batch.keys)
        metrics = {"loss": self.loss(images, mask)}
        return metrics if self.training else metrics | self.baselines(images, mask)

    def draw_mask(self, keys: Tensor, ratio: float | None = None, kind: MaskKind | None = None) -> Mask:
        """One mask per key: (B,) int64 -> `Mask`; ratio and kind as in training, unless they are given."""
        ratio, kind = self.mask_ratio if ratio is None else ratio, kind or self.mask_kind
        return draw_mask(keys, self.backbone.grid_size, ratio, kind)

    def loss(self, images: Tensor, mask: Mask) -> Tensor:
        """Mean squared error on hidden patches: normalised images (B, C, H, W) -> scalar."""
        target = self.target(images, mask.ids_hide)  # (B, N - n, P)
        pred = self.decoder(self.encode(images, mask), mask, mask.ids_hide)  # (B, N - n, P)
        return (pred.to(target.dtype) - target).square().mean()

    def target(self, images: Tensor, ids: Tensor) -> Tensor:
        """What the decoder must predict for the patches at `ids`: (B, C, H, W), (B, k) -> (B, k, P)."""
        patches = gather_tokens(patchify(images, self.backbone.patch_size), ids)
        return standardize_patches(patches) if self.norm_pix_loss else patches

    def encode(self, images: Tensor, mask: Mask) -> Tensor:
        """Encode the visible patches only: (B, C, H, W) -> (B, prefix + n, D)."""
        tokens = self.backbone.patch_embed(images, mask.ids_keep)  # (B, n, D)
        tokens = tokens + gather_tokens(self.backbone.pos_embed, mask.ids_keep)
        return self.backbone.encode(tokens)  # (B, prefix + n, D)

    def reconstruct(self, images: Tensor, mask: Mask | Tensor) -> Tensor:
        """Predict every patch from the visible ones: (B, C, H, W) -> (B, N, P), in the units of the target.

        Args:
            images: normalised.
            mask: a `Mask`, or a user's own: bool (B, N) or (B, grid_h, grid_w), True means hidden.

        Raises:
            UserError: the mask has another number of patches.
        """
        mask = self._own_mask(mask)
        return self.decoder(self.encode(images, mask), mask, all_ids(images, self.backbone))  # (B, N, P)

    def errors(self, images: Tensor, mask: Mask) -> Tensor:
        """Mean squared error of each hidden patch, nan where visible: normalised images (B, C, H, W) -> (B, N)."""
        pred = self.decoder(self.encode(images, mask), mask, mask.ids_hide)  # (B, N - n, P)
        squared = (pred.float() - self.target(images, mask.ids_hide)).square().mean(dim=2)  # (B, N - n)
        return torch.full(mask.mask.shape, float("nan"), device=images.device).scatter(1, mask.ids_hide, squared)

    def baselines(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """The losses of two trivial predictions on the same hidden patches, see `vitmae.models.baselines`."""
        visible, hidden = self.target(images, mask.ids_keep), self.target(images, mask.ids_hide)
        return regression_baselines(visible, hidden, self.mean_patch, self.backbone.in_chans)

    def learn_baselines(self, batches: Iterable[Batch]) -> None:
        """Measure the mean target patch of the training set."""
        targets = (self.target(self.normalize(b.images), all_ids(b.images, self.backbone)) for b in batches)
        self.mean_patch.copy_(mean_over_patches(targets))

    def _own_mask(self, mask: Mask | Tensor) -> Mask:
        """A mask in either form -> a `Mask` for this grid."""
        own = mask if isinstance(mask, Mask) else mask_from_tensor(mask)
        if own.mask.shape[1] != self.backbone.num_patches:
            raise UserError(
                f"a mask of {own.mask.shape[1]} patches does not fit this model: it has "
                f"{self.backbone.num_patches}, {self.backbone.grid_size[0]}x{self.backbone.grid_size[1]}"
            )
        return own

    @torch.no_grad()
    def panel(self, batch: Batch, mask: Mask | Tensor | None = None) -> Panel:
        """What a reconstruction picture shows.

        A standardised prediction does not contain a patch's brightness and contrast. Those of the hidden patches would
        leak the answer into the picture. So all patches get the mean and the contrast of the visible ones.
        """
        mask = self._own_mask(self.draw_mask(batch.keys) if mask is None else mask)
        images = self.normalize(batch.images)
        pred = self.reconstruct(images, mask).float()  # (B, N, P)
        patches = patchify(images, self.backbone.patch_size)
        if self.norm_pix_loss:
            visible = gather_tokens(patches, mask.ids_keep)  # (B, n, P)
            contrast = visible.std(dim=2).mean(dim=1)[:, None, None]
            pred = pred * contrast + visible.mean(dim=(1, 2), keepdim=True)
        grid_size, patch_size = self.backbone.grid_size, self.backbone.patch_size
        hidden = paint(mask.mask[..., None].float(), grid_size, patch_size) > 0  # (B, 1, H, W)
        prediction = self.unnormalize(unpatchify(pred, grid_size, patch_size)).clamp(0, 1)
        original = batch.images.float() / 255
        target = (
            (
                "target: patches standardised by their own mean and variance (norm_pix_loss), "
                "shown at the mean and contrast of the visible patches"
            )
            if self.norm_pix_loss
            else "target: pixels"
        )
        return Panel(
            original, torch.where(hidden, 0.5, original), prediction, torch.where(hidden, prediction, original), target
        )

    @property
    def num_hidden(self) -> int:
        """N - n: how many patches of an image are hidden in training."""
        num_patches = self.backbone.num_patches
        if self.mask_kind == "grid":  # keeps one of each cell, not a rounded share
            return num_patches - round(num_patches * (1 - self.mask_ratio))
        return num_patches - num_visible(num_patches, self.mask_ratio)

    @property
    def predicts(self) -> str:
        """The units of the decoder's output."""
        return "patches standardised by their own mean and variance" if self.norm_pix_loss else "normalised pixels"

    def describe(self) -> dict[str, str]:
        """What is hidden and what is predicted."""
        hidden = f"{self.num_hidden} of {self.backbone.num_patches} patches"
        return {
            "hidden": f"{hidden} ({self.mask_ratio:g}, {self.mask_kind})",
            "target": "standardised patches (norm_pix_loss)" if self.norm_pix_loss else "pixels",
        }

    def macs(self) -> int:
        """Visible patches are projected and encoded, all patches are decoded, hidden ones are predicted."""
        backbone, decoder, hidden = self.backbone, self.decoder, self.num_hidden
        visible, prefix = backbone.num_patches - hidden, backbone.num_prefix_tokens
        return (
            backbone.macs(visible)
            + (visible + prefix) * decoder.embed.weight.numel()
            + blocks_macs(decoder.blocks, prefix + backbone.num_patches, read=hidden)
            + hidden * decoder.pred.weight.numel()
        )


class Decoder(nn.Module):
    """Transformer blocks on the latents of visible patches and on mask tokens.

    Prefix tokens take part, and their outputs are dropped.

    Args:
        backbone: the encoder.
        fixed_positions: see `MAE`.
        embed_dim: E, see `MAE`.
        depth: see `MAE`.
        num_heads: see `MAE`.
    """

    pos_embed: Tensor

    def __init__(
        self, backbone: Backbone, fixed_positions: bool, embed_dim: int | None, depth: int | None, num_heads: int | None
    ) -> None:
        super().__init__()
        as_paper = backbone.embed_dim >= 768
        embed_dim = embed_dim or (512 if as_paper else backbone.embed_dim)
        depth = depth or (8 if as_paper else 4)
        num_heads = num_heads or (16 if as_paper else backbone.num_heads)
        if embed_dim % num_heads or (fixed_positions and embed_dim % 4):
            raise UserError(
                f"model.decoder_embed_dim={embed_dim} must be divisible by model.decoder_num_heads="
                f"{num_heads} and, with fixed positions, by 4"
            )
        self.num_prefix_tokens, self.num_heads = backbone.num_prefix_tokens, num_heads
        self.embed = nn.Linear(backbone.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if fixed_positions:
            self.register_buffer("pos_embed", sincos_positions(backbone.grid_size, embed_dim, self.num_prefix_tokens))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix_tokens + backbone.num_patches, embed_dim))
            nn.init.normal_(self.pos_embed, std=0.02)
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(
            *[Block(embed_dim, num_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm_layer) for _ in range(depth)]
        )
        self.norm = norm_layer(embed_dim)
        self.pred = nn.Linear(embed_dim, patch_length(backbone))
        adopt_blocks(self.blocks)

    def forward(self, latent: Tensor, mask: Mask, ids: Tensor) -> Tensor:
        """Predict the patches at `ids`: latent (B, prefix + n, D), ids (B, k) -> (B, k, P).

        The last block computes these patches only.
        """
        prefix = self.num_prefix_tokens
        tokens = self.embed(latent)  # (B, prefix + n, E)
        hidden = self.mask_token.to(tokens.dtype).expand(*mask.ids_hide.shape, -1)  # (B, N - n, E)
        first = torch.arange(prefix, device=tokens.device).expand(len(tokens), -1)
        order = torch.cat([first, prefix + mask.ids_restore], dim=1)  # (B, prefix + N)
        tokens = gather_tokens(torch.cat([tokens, hidden], dim=1), order)  # (B, prefix + N, E)
        tokens = self.blocks[:-1](tokens + self.pos_embed)
        return self.pred(self.norm(read_tokens(self.blocks[-1], tokens, prefix + ids)))  # (B, k, P)
