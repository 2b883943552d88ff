"""Weights from elsewhere -> what a model takes of them: as they are, resampled, or not at all, and why.

Nothing is written into the model here.

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
from vitmae.weights.source import ENCODER, Source

Fate = Literal["loaded", "renamed", "resampled", "recomputed", "new"]

_POSITIONS = (ENCODER + "pos_embed", "decoder.pos_embed")
_CLS, _REGISTERS = ENCODER + "cls_token", ENCODER + "reg_token"
_PROJECTION = ENCODER + "patch_embed.proj.weight"
_STEMS = (ENCODER + "patch_embed.backbone.stem.conv.weight", ENCODER + "patch_embed.backbone.conv.weight")


@dataclass(frozen=True)
class Fit:
    """What becomes of one tensor of the model.

    Attributes:
        name: in the model, or in its backbone with `backbone.` before it.
        numel: its values.
        fate: loaded as it is, under its own or another name; resampled; recomputed, for fixed positions of
            another grid; or left new.
        note: what was changed, or why it is new; empty for what needs no word.
        value: to be written into the model; None where the model keeps its own.
    """

    name: str
    numel: int
    fate: Fate
    note: str = ""
    value: Tensor | None = None


def fit(source: Source, model: nn.Module) -> list[Fit]:
    """Decide for each tensor of a model what it takes from a source.

    Args:
        source: the weights.
        model: an objective, whose decoder and head are looked for too, or a backbone alone.

    Raises:
        UserError: nobody can tell which grid the source's positions were made for.
    """
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    prefix = "backbone." if model is backbone else ""
    fixed = {prefix + name for name, _ in model.named_buffers()}
    there = _comparable(source, model)
    table = backbone.state_dict().get("vit.pos_embed")  # a user's own backbone has other names
    if table is not None and table.shape[1] == backbone.num_patches:
        there |= _tokens_with_positions(there, source, backbone)
    fits = []
    for key, tensor in model.state_dict().items():
        name = prefix + key
        if name in _POSITIONS:
            fits.append(_fit_positions(name, tensor, there, source, backbone, name in fixed))
        elif name not in fixed or "." in key:  # an objective's own buffers are measured of its data
            fits.append(_fit_tensor(name, tensor, there, source))
    return fits


def _comparable(source: Source, model: nn.Module) -> dict[str, Tensor]:
    """What means the same in this model: the heads of two objectives have only their name in common.

    They mean the same in the same class, and in two that are published as the same architecture.
    """
    published_as = getattr(model, "published_as", None)  # a backbone is not published
    is_same = source.objective == f"{type(model).__module__}.{type(model).__qualname__}" or (
        published_as is not None and source.published_as == published_as
    )
    return {
        name: tensor for name, tensor in source.state.items() if is_same or name.startswith(("backbone.", "decoder."))
    }


def _tokens_with_positions(there: dict[str, Tensor], source: Source, backbone: Backbone) -> dict[str, Tensor]:
    """Prefix tokens with their positions added, for a model that has none for them: the same sum."""
    table, cls, registers = (there.get(name) for name in (ENCODER + "pos_embed", _CLS, _REGISTERS))
    if table is None or cls is None:
        return {}
    _, num_prefix = _grid_of(table, there, source, backbone)
    rows = table[:, :num_prefix]
    tokens = {_CLS: cls + rows[:, :1]} if num_prefix else {}
    if registers is not None and num_prefix == 1 + registers.shape[1]:
        tokens[_REGISTERS] = registers + rows[:, 1:]
    return tokens


def _fit_positions(
    name: str, here: Tensor, there: dict[str, Tensor], source: Source, backbone: Backbone, is_fixed: bool
) -> Fit:
    old = there.get(name)
    if old is None or old.ndim != 3 or old.shape[2] != here.shape[2]:
        kept: Fate = "recomputed" if is_fixed else "new"
        return Fit(name, here.numel(), kept, _difference(old, here))
    grid_size, num_prefix = _grid_of(old, there, source, backbone)
    patches = old[:, num_prefix:]  # (1, N_old, D)
    sizes = f"{_show(grid_size)} -> {_show(backbone.grid_size)}"
    if grid_size == backbone.grid_size:
        fate: Fate = _name_kept(name, source)
        note = ""
    elif is_fixed and is_sincos(patches, grid_size):
        return Fit(name, here.numel(), "recomputed", f"fixed, {sizes}")
    else:
        patches = resample_positions(patches, grid_size, backbone.grid_size, 0)  # (1, N, D)
        fate, note = "resampled", sizes + (", learned there and fixed from here on" if is_fixed else "")
    prefix = patches.new_zeros(1, here.shape[1] - backbone.num_patches, here.shape[2])
    rows = min(num_prefix, prefix.shape[1])
    prefix[:, :rows] = old[:, :rows]  # a token without a row there has no position: zero
    return Fit(name, here.numel(), fate, note, torch.cat([prefix, patches], dim=1))


def _grid_of(table: Tensor, there: dict[str, Tensor], source: Source, backbone: Backbone) -> tuple[Size, int]:
    """The grid that a position table was made for, and how many of its rows belong to prefix tokens."""
    rows = table.shape[1]
    if source.grid_size is not None:
        return source.grid_size, rows - source.grid_size[0] * source.grid_size[1]
    num_cls = int(_CLS in there)
    num_prefix = num_cls + (there[_REGISTERS].shape[1] if _REGISTERS in there else 0)
    for prefix in (num_prefix, num_cls, 0):
        if grid_size := square_grid(rows - prefix):
            return grid_size, prefix
        if rows - prefix == backbone.num_patches:
            return backbone.grid_size, prefix
    raise UserError(
        f"{source.name} has {rows} positions, which are no square, and does not say its grid: "
        "load it at its own data.img_size and save that as a bundle, which does"
    )


def _fit_tensor(name: str, here: Tensor, there: dict[str, Tensor], source: Source) -> Fit:
    old = there.get(name)
    if old is None:
        return Fit(name, here.numel(), "new", _difference(old, here))
    if old.shape == here.shape:
        return Fit(name, here.numel(), _name_kept(name, source), "", old)
    is_kernel = old.ndim == here.ndim == 4 and len(old) == len(here)
    is_hybrid = any(stem in there for stem in _STEMS)
    same_size = old.shape[2:] == here.shape[2:]
    if is_kernel and ((name == _PROJECTION and not is_hybrid) or (name in _STEMS and same_size)):
        value = resample_projection(old, (here.shape[2], here.shape[3]), here.shape[1])
        return Fit(name, here.numel(), "resampled", _difference(old, here), value)
    return Fit(name, here.numel(), "new", _difference(old, here))


def _name_kept(name: str, source: Source) -> Fate:
    """Whether a tensor has the same name there, but for what a wrapper puts before it."""
    return "loaded" if f".{name}".endswith(f".{source.names[name]}") else "renamed"


def _difference(old: Tensor | None, here: Tensor) -> str:
    return "not there" if old is None else f"{_show(old.shape)} -> {_show(here.shape)}"


def _show(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)
