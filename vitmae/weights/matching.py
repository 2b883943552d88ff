"""Which tensors of some weights a model takes: as they are, resampled, or not at all, and why.

The model itself stays as it is.

Shapes: N patches, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitmae.backbones.backbone import Backbone
from vitmae.errors import UserError
from vitmae.tokens.patches import Size
from vitmae.weights.resample import is_sincos, resample_positions, resample_projection, square_grid
from vitmae.weights.translation import ENCODER, Weights

Fate = Literal["loaded", "renamed", "resampled", "recomputed", "new"]

_POSITIONS = (ENCODER + "pos_embed", "decoder.pos_embed")
_CLS, _REGISTERS = ENCODER + "cls_token", ENCODER + "reg_token"
_PROJECTION = ENCODER + "patch_embed.proj.weight"
_STEMS = (ENCODER + "patch_embed.backbone.stem.conv.weight", ENCODER + "patch_embed.backbone.conv.weight")


@dataclass(frozen=True)
class Match:
    """What one tensor of the model takes.

    Attributes:
        name: in the model, or in its backbone with `backbone.` before it.
        numel: how many values it has.
        fate: loaded under its own name, or renamed; resampled; recomputed (fixed positions that the weights do not
            have); or new, which keeps the model's fresh values.
        note: what was changed, or why it is new; may be empty.
        value: to be copied into the model; None: the model keeps its own.
    """

    name: str
    numel: int
    fate: Fate
    note: str = ""
    value: Tensor | None = None


def match_weights(weights: Weights, model: nn.Module) -> list[Match]:
    """Decide for each tensor of a model what it takes.

    Args:
        weights: what was read.
        model: an objective, whose decoder and head are matched too, or a backbone alone.

    Raises:
        UserError: the grid that the positions were made for cannot be told.
    """
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    prefix = "backbone." if model is backbone else ""
    fixed = {prefix + name for name, _ in model.named_buffers()}
    tensors = _comparable(weights, model)
    table = backbone.state_dict().get("vit.pos_embed")  # a user's own backbone has other names
    if table is not None and table.shape[1] == backbone.num_patches:
        tensors |= _tokens_with_positions(tensors, weights, backbone)
    matches = []
    for key, here in model.state_dict().items():
        name = prefix + key
        if name in _POSITIONS:
            matches.append(_match_positions(name, here, tensors, weights, backbone, name in fixed))
        elif name not in fixed or "." in key:  # an objective's own buffers are measured on its data
            matches.append(_match_tensor(name, here, tensors, weights))
    return matches


def _comparable(weights: Weights, model: nn.Module) -> dict[str, Tensor]:
    """The tensors that mean the same in this model.

    A head means the same in the same class, and in two classes that are published as the same architecture. In other
    classes it has only the name in common.
    """
    published_as = getattr(model, "published_as", None)  # a backbone is not published
    is_same = weights.objective == f"{type(model).__module__}.{type(model).__qualname__}" or (
        published_as is not None and weights.published_as == published_as
    )
    return {
        name: tensor for name, tensor in weights.state.items() if is_same or name.startswith(("backbone.", "decoder."))
    }


def _tokens_with_positions(tensors: dict[str, Tensor], weights: Weights, backbone: Backbone) -> dict[str, Tensor]:
    """Prefix tokens plus their positions, for a model whose prefix tokens have no positions: the same sum."""
    table, cls, registers = (tensors.get(name) for name in (ENCODER + "pos_embed", _CLS, _REGISTERS))
    if table is None or cls is None:
        return {}
    _, num_prefix = _grid_of(table, tensors, weights, backbone)
    rows = table[:, :num_prefix]
    tokens = {_CLS: cls + rows[:, :1]} if num_prefix else {}
    if registers is not None and num_prefix == 1 + registers.shape[1]:
        tokens[_REGISTERS] = registers + rows[:, 1:]
    return tokens


def _match_positions(
    name: str, here: Tensor, tensors: dict[str, Tensor], weights: Weights, backbone: Backbone, is_fixed: bool
) -> Match:
    old = tensors.get(name)
    if old is None or old.ndim != 3 or old.shape[2] != here.shape[2]:
        left: Fate = "recomputed" if is_fixed else "new"
        return Match(name, here.numel(), left, _difference(old, here))
    grid_size, num_prefix = _grid_of(old, tensors, weights, backbone)
    patches = old[:, num_prefix:]  # (1, N_old, D)
    sizes = f"{_show(grid_size)} -> {_show(backbone.grid_size)}"
    if grid_size == backbone.grid_size:
        fate: Fate = _loaded_or_renamed(name, weights)
        note = ""
    else:
        becomes_fixed = is_fixed and not is_sincos(patches, grid_size)
        patches = resample_positions(patches, grid_size, backbone.grid_size, 0)  # (1, N, D)
        fate, note = "resampled", sizes + (", learned there and fixed from here on" if becomes_fixed else "")
    prefix = patches.new_zeros(1, here.shape[1] - backbone.num_patches, here.shape[2])
    rows = min(num_prefix, prefix.shape[1])
    prefix[:, :rows] = old[:, :rows]  # a prefix token that has no position in the weights gets zero
    return Match(name, here.numel(), fate, note, torch.cat([prefix, patches], dim=1))


def _grid_of(table: Tensor, tensors: dict[str, Tensor], weights: Weights, backbone: Backbone) -> tuple[Size, int]:
    """The grid that a position table was made for, and how many of its rows belong to prefix tokens."""
    rows = table.shape[1]
    if weights.grid_size is not None:
        return weights.grid_size, rows - weights.grid_size[0] * weights.grid_size[1]
    num_cls = int(_CLS in tensors)
    num_prefix = num_cls + (tensors[_REGISTERS].shape[1] if _REGISTERS in tensors else 0)
    for prefix in (num_prefix, num_cls, 0):
        if grid_size := square_grid(rows - prefix):
            return grid_size, prefix
        if rows - prefix == backbone.num_patches:
            return backbone.grid_size, prefix
    raise UserError(
        f"{weights.name} has {rows} positions, which are no square, and does not say its grid: "
        "load it at its own data.img_size and export that as a bundle, which says it"
    )


def _match_tensor(name: str, here: Tensor, tensors: dict[str, Tensor], weights: Weights) -> Match:
    old = tensors.get(name)
    if old is None:
        return Match(name, here.numel(), "new", _difference(old, here))
    if old.shape == here.shape:
        return Match(name, here.numel(), _loaded_or_renamed(name, weights), "", old)
    is_kernel = old.ndim == here.ndim == 4 and len(old) == len(here)
    is_hybrid = any(stem in tensors for stem in _STEMS)
    same_size = old.shape[2:] == here.shape[2:]
    if is_kernel and ((name == _PROJECTION and not is_hybrid) or (name in _STEMS and same_size)):
        value = resample_projection(old, (here.shape[2], here.shape[3]), here.shape[1])
        return Match(name, here.numel(), "resampled", _difference(old, here), value)
    return Match(name, here.numel(), "new", _difference(old, here))


def _loaded_or_renamed(name: str, weights: Weights) -> Fate:
    """``loaded`` if a tensor has the same name in the weights, apart from a wrapper's prefix; else ``renamed``."""
    return "loaded" if f".{name}".endswith(f".{weights.names[name]}") else "renamed"


def _difference(old: Tensor | None, here: Tensor) -> str:
    return "not there" if old is None else f"{_show(old.shape)} -> {_show(here.shape)}"


def _show(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)
