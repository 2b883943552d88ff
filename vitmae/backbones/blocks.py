"""timm's transformer layers, computed faster: the same parameters, names and numbers.

`use_fast_layers` gives the layers of a built model these classes. Two things are gained:

- In bf16 on a processor, where a step is bound by memory and not only by products, a linear layer adds its bias within
  the product, and attention copies queries, keys and values once instead of five times.
- A block can be asked for some of its tokens only. The last block of a model is: what nobody reads is not computed.

Everywhere else, in float32, on a GPU and when compiled, timm's own forward runs.

Shapes: B batch, T tokens, k tokens that are read, D width, h heads, d width of a head.
"""

from typing import Any

import torch
from timm.models import vision_transformer as timm_layers
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitmae.tokens.patches import gather_tokens

_LARGE = 2**19  # values of an output, from where on what is saved is more than what Python takes for it


def _can_fuse_bias() -> bool:
    """Whether this build of torch has oneDNN's product with a bias, and this processor computes it in bf16."""
    needed = ("_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in needed)):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_FUSES_BIAS = _can_fuse_bias()


def use_fast_layers(module: nn.Module) -> None:
    """Make timm's plain linear layers, attentions and blocks in a module the ones of this file.

    Parameters, buffers, hooks and names stay as they are; layers of any other class are left alone.
    """
    for part in module.modules():
        faster = _FASTER.get(type(part))
        if faster is not None:
            part.__class__ = faster  # what timm has built and initialised stays; only how it computes changes


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What torch's `linear` computes: (..., D), weight (E, D), bias (E,) -> (..., E).

    In bf16 on a processor torch writes the bias into the output first and reads it back in the product. oneDNN adds it
    in passing, which is up to a fifth of the time of a narrow layer, and rounds once instead of twice.
    """
    # the size comes last: an exported graph holds for all sizes, so that there is none to ask for
    if not (_FUSES_BIAS and _in_bf16_on_cpu(x) and x.shape[:-1].numel() * len(weight) >= _LARGE):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.to(torch.bfloat16), weight, bias)


class Linear(nn.Linear):
    """torch's linear layer through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        return linear(x, self.weight, self.bias)


class Attention(timm_layers.Attention):
    """timm's self-attention, faster in bf16 on a processor and on request for some queries only."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, ids: Tensor | None = None
    ) -> Tensor:
        """Each token looks at all: (B, T, D) -> (B, T, D), or with ids (B, k) only these tokens -> (B, k, D)."""
        if ids is not None:
            return self._read(x, ids)
        is_fast = not self.fused_attn and _in_bf16_on_cpu(x) and x.numel() >= _LARGE and self._is_plain()
        if not is_fast or attn_mask is not None or is_causal:
            return super().forward(x, attn_mask, is_causal)
        attended = _Attention.apply(self.qkv(x), self.num_heads, self.scale)  # (B, T, D)
        return self.proj_drop(self.proj(attended))

    def _is_plain(self) -> bool:
        """Whether there is nothing between the projections but softmax(q k^T) v, and nobody watches the weights."""
        extras = (self.q_norm, self.k_norm, self.norm)
        watched = (self.training and self.attn_drop.p > 0) or self.attn_drop._forward_hooks
        return self.gate is None and not watched and all(isinstance(extra, nn.Identity) for extra in extras)

    def _read(self, x: Tensor, ids: Tensor) -> Tensor:
        """As timm's forward, with fewer queries."""
        batch, tokens, _ = x.shape
        q, kv = self.qkv(x).split((self.attn_dim, 2 * self.attn_dim), dim=-1)  # (B, T, D), (B, T, 2 D)
        q = gather_tokens(q, ids).view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)  # (B, h, k, d)
        k, v = kv.view(batch, tokens, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (B, h, k, d)
        else:
            weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)  # (B, h, k, T)
            attended = self.attn_drop(weights) @ v  # (B, h, k, d)
        output = self.norm(attended.transpose(1, 2).reshape(batch, -1, self.attn_dim))  # (B, k, D)
        if self.gate is not None:
            output = output * self.gate(gather_tokens(x, ids)).sigmoid()
        return self.proj_drop(self.proj(output))


class Block(timm_layers.Block):
    """timm's transformer block, on request for some tokens only."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, ids: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), or with ids (B, k) -> (B, k, D), the same rows of it."""
        if ids is None:
            return super().forward(x, attn_mask, is_causal)
        attended = self.attn(self.norm1(x), attn_mask, is_causal, ids)  # (B, k, D)
        x = gather_tokens(x, ids) + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def read_tokens(block: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
    """The rows `ids` (B, k) of what a block makes of (B, T, D): (B, k, D), computing no more than that if it can."""
    return block(x, ids=ids) if isinstance(block, Block) else gather_tokens(block(x), ids)


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    timm_layers.Attention: Attention,
    timm_layers.Block: Block,
}


def _in_bf16_on_cpu(x: Tensor) -> bool:
    """Whether a layer that is given this input computes in bf16 on a processor, and step by step."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


class _Linear(torch.autograd.Function):
    """`linear` in bf16. Weights are rounded anew for the backward pass: cheaper than to keep them all in between.

    The gradient of the bias is a product with ones, which reads once at full speed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        bias = None if bias is None else bias.to(x.dtype)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.to(x.dtype), bias, "none", [], "")
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (M, E)
        grad_x = (rows @ weight.to(rows.dtype)).view(*grad.shape[:-1], weight.shape[1]) if needs_x else None
        grad_weight = rows.t() @ x.reshape(len(rows), -1) if needs_weight else None
        grad_bias = (rows.new_ones(1, len(rows)) @ rows)[0] if needs_bias else None
        return grad_x, grad_weight, grad_bias


class _Attention(torch.autograd.Function):
    """Softmax attention of bf16 tensors: (B, T, 3 D) -> (B, T, D). Only what the backward pass reads is kept."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, scale: float) -> Tensor:
        batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        head_dim = width // num_heads
        parts = qkv.view(batch, tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4).contiguous()
        parts = parts.view(3, batch * num_heads, tokens, head_dim)
        q, k, v = parts.unbind()  # (B h, T, d) each
        weights = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        torch.softmax(weights, dim=-1, out=weights)  # (B h, T, T)
        ctx.save_for_backward(parts, weights)
        ctx.num_heads, ctx.scale = num_heads, scale
        attended = torch.bmm(weights, v).view(batch, num_heads, tokens, head_dim)
        return attended.transpose(1, 2).reshape(batch, tokens, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts, weights = ctx.saved_tensors
        q, k, v = parts.unbind()
        (batch, tokens, width), head_dim = grad.shape, q.shape[-1]
        grad = grad.view(batch, tokens, ctx.num_heads, head_dim).transpose(1, 2).reshape(q.shape)
        grads = torch.empty_like(parts)
        grad_q, grad_k, grad_v = grads.unbind()
        torch.bmm(weights.transpose(1, 2), grad, out=grad_v)
        scores = torch.bmm(grad, v.transpose(1, 2))  # (B h, T, T)
        scores = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
        torch.baddbmm(grad_q, scores, k, beta=0, alpha=ctx.scale, out=grad_q)
        torch.baddbmm(grad_k, scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=grad_k)
        grads = grads.view(3, batch, ctx.num_heads, tokens, head_dim).permute(1, 3, 0, 2, 4)
        return grads.reshape(batch, tokens, 3 * width), None, None
