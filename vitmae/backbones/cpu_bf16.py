"""Linear layers and attention in bf16 on a processor, with fewer copies in memory than torch's.

A linear layer adds its bias inside the matrix product, and attention copies queries, keys and values once instead of
five times. In float32, on a GPU and when compiled, torch's own functions run.

Shapes: B batch, T tokens, M rows of a batch, D width, E width of an output, h heads, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitmae.torch_internals import can_fuse_bias, linear_with_bias, softmax_backward

_LARGE = 2**19  # values of an output; for fewer, Python takes more time than is saved
_FUSES_BIAS = can_fuse_bias()


def replace_linear_layers(module: nn.Module) -> None:
    """Replace each plain linear layer of torch inside a module by a `Linear` with the same parameters."""
    for name, part in module.named_children():
        if type(part) is nn.Linear:
            setattr(module, name, Linear(part))
        else:
            replace_linear_layers(part)


class Linear(nn.Linear):
    """torch's linear layer, computed by `linear`.

    Args:
        layer: the layer whose parameters it uses; no random number is drawn.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        # `linear` would decide the same: asked here, the many layers of a small model cost no further call
        if torch.compiler.is_compiling() or x.shape[:-1].numel() * self.out_features < _LARGE:
            return F.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as torch's `linear`: (..., D), weight (E, D), bias (E,) -> (..., E).

    In bf16 on a processor torch first writes the bias to the output and reads it again in the product. oneDNN adds the
    bias inside the product: it saves up to a fifth of the time of a narrow layer, and rounds once instead of twice.
    """
    # the size is checked last: while a graph is exported, the size is not known
    if not (_FUSES_BIAS and _in_bf16_on_cpu(x) and x.shape[:-1].numel() * len(weight) >= _LARGE):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.to(torch.bfloat16), weight, bias)


def has_fast_attention(x: Tensor) -> bool:
    """Whether `attention` is faster than torch's for an input (B, T, D)."""
    return not torch.compiler.is_compiling() and x.numel() >= _LARGE and _in_bf16_on_cpu(x)


def attention(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    """Softmax attention of bf16 tensors: queries, keys and values (B, T, 3 D) -> (B, T, D)."""
    return _Attention.apply(qkv, num_heads, scale)


def _in_bf16_on_cpu(x: Tensor) -> bool:
    """Whether a layer computes in bf16 on a processor for this input, and is not compiled."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


class _Linear(torch.autograd.Function):
    """`linear` in bf16. The backward pass rounds the weights again, which is cheaper than to store the rounded ones.

    The gradient of the bias is a product with ones, which reads memory once, at full speed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return linear_with_bias(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

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
    """`attention`; it stores only what the backward pass reads."""

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
        scores = softmax_backward(torch.bmm(grad, v.transpose(1, 2)), weights)  # (B h, T, T)
        torch.baddbmm(grad_q, scores, k, beta=0, alpha=ctx.scale, out=grad_q)
        torch.baddbmm(grad_k, scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=grad_k)
        grads = grads.view(3, batch, ctx.num_heads, tokens, head_dim).permute(1, 3, 0, 2, 4)
        return grads.reshape(batch, tokens, 3 * width), None, None
