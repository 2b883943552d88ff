"""The private names of torch that this project uses. No other file of the package uses one.

`tests/test_foreign_internals.py` asserts that each of them exists and still has its effect.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


def can_fuse_bias() -> bool:
    """Whether this build of torch has oneDNN's linear layer with a bias, and this processor computes it in bf16."""
    needed = ("_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in needed)):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear_with_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """OneDNN's linear layer with a fused bias: x (..., D), weight (E, D), bias (E,), all bf16 -> (..., E).

    `torch.nn.functional.linear` first writes the bias into the output and reads it back; no public function avoids
    that. Call this only if `can_fuse_bias()`.
    """
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The backward pass of softmax over the last dimension: the gradient of `weights`, its output -> that of its input.

    A backward pass that saves only `weights` needs this; with public functions it computes the softmax a second time.
    """
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks; torch has a public way to add a hook, but none to ask for hooks."""
    return bool(module._forward_hooks)


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called; no public attribute tells."""
    return module._compiled_call_impl is not None


def stop_workers(loader: DataLoader[Any]) -> None:
    """End the persistent worker processes of a loader; torch itself ends them only at garbage collection."""
    loader._iterator = None
