"""Google's `.npz` files for ViT and its ResNet hybrids: those of `vision_transformer` and of `big_vision`.

Arrays are in JAX's order: a dense kernel is (in, out), a convolution's (h, w, in, out), attention's query, key and
value (D, heads, D / heads) and its output (heads, D / heads, D).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitmae.weights.translation import ENCODER, Weights

_PREFIXES = ("", "opt/target/", "params/", "params/img/")
_LANDMARK = "embedding/kernel"

_NAMES = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_IN_BLOCK = (
    (r"LayerNorm_0", "norm1"),
    (r"LayerNorm_[12]", "norm2"),
    (r"MultiHeadDotProductAttention_\d/qkv", "attn.qkv"),
    (r"MultiHeadDotProductAttention_\d/out", "attn.proj"),
    (r"MlpBlock_\d/Dense_0", "mlp.fc1"),
    (r"MlpBlock_\d/Dense_1", "mlp.fc2"),
)
_IN_POOL = (
    (r"LayerNorm_0", "norm"),
    (r"MultiHeadDotProductAttention_0/query", "q"),
    (r"MultiHeadDotProductAttention_0/kv", "kv"),
    (r"MultiHeadDotProductAttention_0/out", "proj"),
    (r"MlpBlock_0/Dense_0", "mlp.fc1"),
    (r"MlpBlock_0/Dense_1", "mlp.fc2"),
)


def read(content: Mapping[str, Tensor], name: str) -> Weights | None:
    """Translate such a file; None if it has another format.

    Args:
        content: arrays by their names.
        name: as the user wrote it.
    """
    prefix = next((prefix for prefix in _PREFIXES if prefix + _LANDMARK in content), None)
    if prefix is None:
        return None
    arrays = {key.removeprefix(prefix): array for key, array in content.items() if key.startswith(prefix)}
    # timm gives the stem another name in a hybrid whose ResNet has no stages
    stem = "patch_embed.backbone." + ("stem." if any(key.startswith("block") for key in arrays) else "")
    state, names, unknown = {}, {}, []
    for theirs, array in _stack_qkv(_split_blocks(arrays)).items():
        ours = _rename(theirs, stem)
        if ours is None:
            unknown.append(theirs)
        else:
            state[ours], names[ours] = _in_torch_order(theirs, array), theirs
    return Weights(name, "Google's npz", state, names, tuple(unknown))


def _split_blocks(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One array per block, also for files that stack all blocks along the first axis."""
    split: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if name.startswith("Transformer/encoderblock/"):
            rest = name.removeprefix("Transformer/encoderblock/")
            split |= {f"Transformer/encoderblock_{block}/{rest}": part for block, part in enumerate(array)}
        else:
            split[name] = array
    return split


def _stack_qkv(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one array per block, (D, 3, heads, D / heads); in attention pooling, key and value."""
    stacked = {}
    for name, array in arrays.items():
        attention = re.fullmatch(r"(.*Attention_\d)/(query|key|value)/(.*)", name)
        before, found, after = attention.groups() if attention else (name, "", "")
        pool = before.startswith("MAPHead_0")
        together = ("key", "value") if pool else ("query", "key", "value")
        if found not in together:
            stacked[name] = array
        elif found == together[0]:
            parts = [arrays[f"{before}/{part}/{after}"] for part in together]
            stacked[f"{before}/{'kv' if pool else 'qkv'}/{after}"] = torch.stack(parts, dim=array.ndim - 2)
    return stacked


def _rename(name: str, stem: str) -> str | None:
    """Google's name in this project; None if there is none (`pre_logits`, optimiser state)."""
    if name in _NAMES:
        return ENCODER + _NAMES[name]
    if name == "MAPHead_0/probe":
        return "attn_pool.latent"
    path, _, kind = name.rpartition("/")
    layer = _rename_layer(path, stem) if kind in _KINDS else None
    return layer and f"{layer}.{_KINDS[kind]}"


def _rename_layer(path: str, stem: str) -> str | None:
    """The name of Google's layer in this project; None if there is none."""
    if path == "head":
        return "head"
    if found := re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)", path):
        part = _first_match(_IN_BLOCK, found[2])
        return part and f"{ENCODER}blocks.{found[1]}.{part}"
    if path.startswith("MAPHead_0/"):
        part = _first_match(_IN_POOL, path.removeprefix("MAPHead_0/"))
        return part and f"attn_pool.{part}"
    if path in ("conv_root", "gn_root"):
        return f"{ENCODER}{stem}{'conv' if path == 'conv_root' else 'norm'}"
    if found := re.fullmatch(r"block(\d+)/unit(\d+)/(conv|gn)(\d|_proj)", path):
        stage, unit = int(found[1]) - 1, int(found[2]) - 1  # Google counts from 1
        layer = "conv" if found[3] == "conv" else "norm"
        layer = f"downsample.{layer}" if found[4] == "_proj" else layer + found[4]
        return f"{ENCODER}patch_embed.backbone.stages.{stage}.blocks.{unit}.{layer}"
    return None


def _first_match(patterns: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((ours for pattern, ours in patterns if re.fullmatch(pattern, text)), None)


def _in_torch_order(name: str, array: Tensor) -> Tensor:
    """An array with its axes in the order of torch's layers."""
    array = array.float()
    if name.endswith(("cls", "pos_embedding", "probe")):
        return array
    if re.search(r"Attention_\d/(query|qkv|kv|out)/", name):
        if name.endswith("/bias"):
            return array.flatten()
        # (heads, D / heads, D) -> (D, D); (D, 3, heads, D / heads) -> (3 D, D)
        return (array.flatten(0, 1) if "/out/" in name else array.flatten(1)).T.contiguous()
    if name.endswith("/kernel"):
        return array.permute(3, 2, 0, 1).contiguous() if array.ndim == 4 else array.T.contiguous()
    return array.flatten()  # group norms are saved as (1, 1, 1, C)
