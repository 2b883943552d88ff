"""What this project uses of torch although torch keeps it private. No other file of the package touches such a name.

`tests/test_foreign_internals.py` asserts for each that it exists and still has its effect.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


def can_fuse_bias() -> bool:
    """Whether this build of torch has oneDNN's product with a bias, and this processor computes it in bf16."""
    needed = ("_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in needed)):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear_with_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """OneDNN's product, which adds the bias in passing: (..., D), weight (E, D), bias (E,), all bf16 -> (..., E).

    `torch.nn.functional.linear` writes the bias into the output first and reads it back, and no public function
    does better. Only where `can_fuse_bias`.
    """
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the scores whose softmax over the last dimension is `weights`, given that of `weights`.

    A backward pass written by hand saves the weights only; the public way computes the softmax a second time.
    """
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether somebody watches a module's outputs: torch has a way to add a hook and none to ask for it."""
    return bool(module._forward_hooks)


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called, which leaves no public trace."""
    return module._compiled_call_impl is not None


def stop_workers(loader: DataLoader[Any]) -> None:
    """End the worker processes of a loader that keeps them between epochs; torch leaves that to garbage collection."""
    loader._iterator = None
