"""Transformer blocks that can compute only some tokens of their output.

The layer after a model's last block often reads some tokens only: MAE's decoder predicts hidden patches, a classifier
reads CLS. timm's block computes all tokens. `Block` has the parts of timm's block, under the same names and in the same
order, and computes only the rows of its output that the caller names.

Shapes: B batch, T tokens, k tokens that are read, D width, h heads, d width of a head.
"""

import timm
from timm.models import vision_transformer as timm_layers
from torch import Tensor, nn
from torch.nn import functional as F

from vitmae.backbones import cpu_bf16
from vitmae.backbones.backbone import use_fused_attention
from vitmae.errors import UserError
from vitmae.tokens.patches import gather_tokens
from vitmae.torch_internals import has_forward_hooks


def adopt_blocks(blocks: nn.Sequential) -> None:
    """Replace timm's plain blocks by `Block`; other kinds of blocks, and blocks with another attention, stay.

    Raises:
        UserError: the plain block of this version of timm has parts that `Block` does not know.
    """
    for name, block in blocks.named_children():
        if type(block) is timm_layers.Block and type(block.attn) is timm_layers.Attention:
            setattr(blocks, name, Block(block))


def choose_kernels(model: nn.Module, *, in_cpu_bf16: bool) -> None:
    """Compute with what is fast: the same numbers up to rounding, another speed.

    In bf16 on a processor that is an explicit softmax and the linear layers of `vitmae.backbones.cpu_bf16`, in each
    part of the model that holds transformer blocks; elsewhere torch's fused attention and torch's linear layers.

    Args:
        model: an objective or a backbone.
        in_cpu_bf16: whether it computes in bf16 on a processor.
    """
    use_fused_attention(model, not in_cpu_bf16)
    if in_cpu_bf16:
        for part in model.children():
            if any(isinstance(module, Block) for module in part.modules()):
                cpu_bf16.replace_linear_layers(part)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parts of timm's `Attention`, for all queries or only some.

    Args:
        attention: the layer whose parts it uses.

    Attributes:
        fused_attn: whether torch's fused kernel computes it; otherwise an explicit softmax.
    """

    def __init__(self, attention: timm_layers.Attention) -> None:
        super().__init__()
        _check_parts(attention, _ATTENTION_PARTS)
        self.num_heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        self.scale: float = attention.scale
        self.fused_attn: bool = attention.fused_attn
        self.qkv = attention.qkv
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.attn_drop = attention.attn_drop
        self.norm = attention.norm
        self.gate = getattr(attention, "gate", None)  # timm < 1.0.28 has none
        self.proj = attention.proj
        self.proj_drop = attention.proj_drop

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Each token attends to all: (B, T, D) -> (B, T, D); with ids (B, k) only these tokens do -> (B, k, D)."""
        if ids is None and not self.fused_attn and cpu_bf16.has_fast_attention(x) and self._is_plain():
            attended = cpu_bf16.attention(self.qkv(x), self.num_heads, self.scale)  # (B, T, D)
            return self.proj_drop(self.proj(attended))
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, T, d) each
        if ids is not None:
            q = gather_tokens(q.transpose(1, 2).flatten(2), ids)  # (B, k, D)
            q = q.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)  # (B, h, k, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (B, h, k, d)
        else:
            weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)  # (B, h, k, T)
            attended = self.attn_drop(weights) @ v  # (B, h, k, d)
        output = self.norm(attended.transpose(1, 2).flatten(2))  # (B, k, D)
        if self.gate is not None:
            output = output * self.gate(x if ids is None else gather_tokens(x, ids)).sigmoid()
        return self.proj_drop(self.proj(output))

    def _is_plain(self) -> bool:
        """Whether softmax(q k^T) v is all between the projections, and no hook reads the weights."""
        extras = (self.q_norm, self.k_norm, self.norm)
        watched = (self.training and self.attn_drop.p > 0) or has_forward_hooks(self.attn_drop)
        return self.gate is None and not watched and all(isinstance(extra, nn.Identity) for extra in extras)


class Block(nn.Module):
    """Transformer block with the parts of timm's `Block`, for all tokens or only some.

    Args:
        block: the block whose parts it uses.
    """

    def __init__(self, block: timm_layers.Block) -> None:
        super().__init__()
        _check_parts(block, _BLOCK_PARTS)
        self.norm1 = block.norm1
        self.attn = SelfAttention(block.attn)
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or with ids (B, k) only these rows of it -> (B, k, D)."""
        attended = self.attn(self.norm1(x), ids)  # (B, k, D)
        x = (x if ids is None else gather_tokens(x, ids)) + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def read_tokens(block: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
    """The rows `ids` (B, k) of a block's output: (B, T, D) -> (B, k, D); a `Block` computes only these."""
    return block(x, ids) if isinstance(block, Block) else gather_tokens(block(x), ids)


TESTED_TIMM = "1.0.23 to 1.0.31"
_BLOCK_PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
_ATTENTION_PARTS = {
    *("num_heads", "head_dim", "attn_dim", "scale", "fused_attn"),
    *("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"),
}


def _check_parts(module: nn.Module, known: set[str]) -> None:
    """Refuse a layer with a part or a setting that the forward pass of this file does not use."""
    settings = {name for name in vars(module) if not name.startswith("_")} - {"training"}
    tensors = {name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]}
    unknown = (settings | tensors | {name for name, _ in module.named_children()}) - known
    if unknown:
        raise UserError(
            f"timm {timm.__version__} builds its {type(module).__name__} with {', '.join(sorted(unknown))}, which "
            f"vitmae does not know: install a version from {TESTED_TIMM}"
        )
