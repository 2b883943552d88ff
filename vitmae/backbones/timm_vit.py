"""Any VisionTransformer of timm, and its ResNet hybrids, as a `Backbone`.

It uses timm's public attributes only: patch_embed, cls_token, reg_token, pos_embed, no_embed_class, pos_drop, norm_pre,
blocks, norm.

Shapes: B batch, C channels, H W image, N patches, n chosen ones, D width.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import timm
import torch
from annotated_types import Ge, Gt, Le, Lt
from timm.layers.patch_embed import PatchEmbed
from timm.layers.weight_init import lecun_normal_
from timm.models import checkpoint, checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitmae.backbones.backbone import Backbone, init_xavier, patch_length
from vitmae.backbones.blocks import adopt_blocks, read_tokens
from vitmae.backbones.cpu_bf16 import linear
from vitmae.backbones.macs import blocks_macs, convolution_macs
from vitmae.errors import UserError
from vitmae.limits import check_arguments
from vitmae.tokens.patches import Size, gather_tokens, paint, pair, patchify
from vitmae.tokens.positions import sincos_positions

Count = Annotated[int, Ge(1)]
Side = Annotated[int, Ge(1), Le(2**16)]


class TimmViT(Backbone):
    """A timm VisionTransformer without its head.

    Args:
        name: a timm model name, such as ``vit_base_patch16_224`` or ``vit_base_patch14_reg4_dinov2``.
        img_size: side in pixels, or (height, width).
        in_chans: image channels.
        patch_size: side in pixels, or (height, width); None: that of the named model. A hybrid has that of its ResNet.
        embed_dim: D; None: that of the named model.
        depth: number of blocks; None: that of the named model.
        num_heads: attention heads; None: that of the named model.
        mlp_ratio: hidden width of the MLP divided by D; None: that of the named model.
        drop_path_rate: stochastic depth, growing linearly from 0 at the first block to this at the last.
        drop_rate: dropout after positions, projections and MLP layers (0.1 in https://arxiv.org/abs/2010.11929, T3).
        grad_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.

    Raises:
        UserError: the name is unknown, the model is not a VisionTransformer, or the sizes do not fit each other.
    """

    @check_arguments("backbone")
    def __init__(
        self,
        name: str,
        img_size: Side | Sequence[Side],
        in_chans: Annotated[int, Ge(1), Le(10_000)] = 3,
        patch_size: Count | Sequence[Count] | None = None,
        embed_dim: Count | None = None,
        depth: Annotated[int, Ge(1), Le(1000)] | None = None,
        num_heads: Count | None = None,
        mlp_ratio: Annotated[float, Gt(0)] | None = None,
        drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.0,
        drop_rate: Annotated[float, Ge(0), Lt(1)] = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.img_size, self.in_chans, self.mlp_ratio = name, pair(img_size), in_chans, mlp_ratio
        shape: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
        if patch_size is not None:
            shape["patch_size"] = pair(patch_size)
        dropout = {"pos_drop_rate": drop_rate, "proj_drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
        self.vit = _create(name, self.img_size, in_chans, {k: v for k, v in shape.items() if v is not None} | dropout)
        adopt_blocks(self.vit.blocks)
        self.grad_checkpointing = grad_checkpointing
        self.is_hybrid = hasattr(self.vit.patch_embed, "backbone")
        self.grid_size = pair(self.vit.patch_embed.grid_size)
        pixels = (side // grid for side, grid in zip(self.img_size, self.grid_size, strict=True))
        self.patch_size = pair(tuple(pixels) if self.is_hybrid else self.vit.patch_embed.patch_size)
        _check_sizes(name, self.img_size, self.grid_size, self.patch_size)
        self.embed_dim, self.depth = self.vit.embed_dim, len(self.vit.blocks)
        self.num_heads = self.vit.blocks[0].attn.num_heads
        self.num_prefix_tokens = self.vit.num_prefix_tokens
        self.has_cls = self.vit.cls_token is not None

    @property
    def pos_embed(self) -> Tensor:
        """Positions of the patches: (1, N, D)."""
        return self.vit.pos_embed[:, self._num_prefix_positions :]

    @property
    def _num_prefix_positions(self) -> int:
        """How many rows of timm's table belong to prefix tokens: 0 in newer models."""
        return 0 if self.vit.no_embed_class else self.num_prefix_tokens

    def fix_positions(self) -> None:
        """Replace learned positions by fixed 2-D sine-cosine ones, in a buffer of the same name."""
        if self.embed_dim % 4:
            raise UserError(
                f"fixed sine-cosine positions need a width divisible by 4: backbone.embed_dim={self.embed_dim}"
            )
        table = sincos_positions(self.grid_size, self.embed_dim, self._num_prefix_positions)
        del self.vit.pos_embed
        self.vit.register_buffer("pos_embed", table)

    def init_xavier(self) -> None:
        """Initialise as in the MAE paper: Xavier-uniform for linear layers and the patch projection, normal tokens.

        The projection's bias stays as torch's Conv2d draws it, as in the published code.
        """
        init_xavier(self.vit.blocks)
        proj = self.vit.patch_embed.proj
        nn.init.xavier_uniform_(proj.weight.view(proj.weight.shape[0], -1))
        for token in (self.vit.cls_token, self.vit.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def init_jax(self) -> None:
        """Initialise as in ViT's published code.

        Xavier-uniform linear layers, queries, keys and values each for itself; biases of an MLP normal with deviation
        1e-6, all others 0; the patch projection LeCun-normal; CLS and registers 0; learned positions normal with
        deviation 0.02.
        """
        vit = self.vit
        for name, part in vit.blocks.named_modules():
            if isinstance(part, nn.Linear):
                for weight in part.weight.detach().chunk(3 if name.endswith("qkv") else 1):
                    nn.init.xavier_uniform_(weight)
                if part.bias is not None:
                    nn.init.normal_(part.bias, std=1e-6 if ".mlp." in name else 0.0)
        lecun_normal_(vit.patch_embed.proj.weight)
        for zero in (vit.patch_embed.proj.bias, vit.cls_token, vit.reg_token):
            if zero is not None:
                nn.init.zeros_(zero)
        if isinstance(vit.pos_embed, nn.Parameter):
            nn.init.normal_(vit.pos_embed, std=0.02)

    def remove_norm(self) -> None:
        """Remove the final norm, for a head with a norm of its own."""
        self.vit.norm = nn.Identity()

    def patch_embed(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Project all patches, or those at `ids_keep` (B, n): (B, C, H, W) -> (B, n, D), without positions.

        The ResNet of a hybrid reads neighbouring patches too, so all other patches of its input are set to 0 first.
        """
        if self.is_hybrid:
            if ids_keep is None:
                return self.vit.patch_embed(images)  # (B, N, D)
            return gather_tokens(self.vit.patch_embed(self._blank(images, ids_keep)), ids_keep)
        embed = self.vit.patch_embed
        patches = patchify(images, self.patch_size)  # (B, N, P)
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)  # (B, n, P)
        weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, P), in patchify's order
        return embed.norm(linear(patches, weight, embed.proj.bias))  # (B, n, D)

    def _blank(self, images: Tensor, ids_keep: Tensor) -> Tensor:
        """Set the pixels of all patches not in `ids_keep` to 0, the mean of normalised images."""
        keep = images.new_zeros(images.shape[0], self.num_patches).scatter(1, ids_keep, 1.0)
        keep = paint(keep[..., None], self.grid_size, self.patch_size)  # (B, 1, H, W)
        return torch.where(keep > 0, images, 0.0)

    def encode(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Run the blocks: (B, n, D) with positions -> (B, prefix + n, D), or the rows `ids` (B, k) of it."""
        vit = self.vit
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if prefix:
            first = torch.cat(prefix, dim=1)  # (1, prefix, D)
            if self._num_prefix_positions:
                first = first + vit.pos_embed[:, : self._num_prefix_positions]
            tokens = torch.cat([first.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = vit.norm_pre(vit.pos_drop(tokens))  # (B, prefix + n, D)
        if ids is None:
            tokens = checkpoint_seq(vit.blocks, tokens) if self.grad_checkpointing else vit.blocks(tokens)
            return vit.norm(tokens)
        *first, last = vit.blocks
        for block in first:
            tokens = checkpoint(block, tokens) if self.grad_checkpointing else block(tokens)
        return vit.norm(read_tokens(last, tokens, ids))  # (B, k, D)

    def macs(self, patches: int, read: int | None = None) -> int:
        """Multiply-accumulates of projecting and encoding `patches` patches, see `vitmae.backbones.macs`."""
        if self.is_hybrid:  # its ResNet always sees the whole image
            projection = convolution_macs(self.vit.patch_embed, (self.in_chans, *self.img_size))
        else:
            projection = patches * patch_length(self) * self.embed_dim
        return projection + blocks_macs(self.vit.blocks, patches + self.num_prefix_tokens, read)

    def first_parts(self, num_blocks: int) -> list[nn.Module]:
        """The embeddings with their dropout, and the first `num_blocks` blocks."""
        vit = self.vit
        return [vit.patch_embed, vit.pos_drop, vit.norm_pre, *vit.blocks[:num_blocks]]

    def layer_of(self, name: str) -> int:
        """0 for embeddings and positions, i + 1 for block i, depth + 1 for the rest (BEiT's and MAE's counting)."""
        parts = name.removeprefix("vit.").split(".")
        if parts[0] == "blocks":
            return int(parts[1]) + 1
        return 0 if parts[0] in ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre") else self.depth + 1


def _create(name: str, img_size: Size, in_chans: int, settings: dict[str, Any]) -> VisionTransformer:
    """`timm.create_model`; its failures become a `UserError` of one line."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"backbone.name={name}: timm has no such model{hint}")
    if "patch_size" in settings:
        for side, patch in zip(img_size, settings["patch_size"], strict=True):
            if side % patch:
                raise UserError(
                    f"data.img_size={_show(img_size)} is not divisible by backbone.patch_size="
                    f"{_show(settings['patch_size'])}: choose a multiple"
                )
    try:
        vit = timm.create_model(
            name, pretrained=False, img_size=img_size, in_chans=in_chans, num_classes=0, global_pool="", **settings
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"backbone.name={name} cannot be built at {_show(img_size)} px with {settings}"
        raise UserError(f"{what}: {reason}") from error
    embed = getattr(vit, "patch_embed", None)
    if not isinstance(vit, VisionTransformer) or not (isinstance(embed, PatchEmbed) or hasattr(embed, "backbone")):
        raise UserError(f"backbone.name={name} is a {type(vit).__name__}, not a VisionTransformer on patches")
    if vit.pos_embed is None:
        raise UserError(f"backbone.name={name} has no absolute position embedding, which masking needs")
    return vit


def _check_sizes(name: str, img_size: Size, grid_size: Size, patch_size: Size) -> None:
    covered = (grid_size[0] * patch_size[0], grid_size[1] * patch_size[1])
    if covered != img_size:
        raise UserError(
            f"data.img_size={_show(img_size)} is not divisible into the patches of backbone {name}: "
            f"choose a multiple of {_show(patch_size)}, its patch size"
        )


def _show(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"[{size[0]},{size[1]}]"
