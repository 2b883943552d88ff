"""Weights under this project's names, and what is known about them.

This project's names are those of its modules: `backbone.vit.` with timm's names, `decoder.` with those of
`vitmae.models.mae.Decoder`, and a classifier's `head.`, `fc_norm.` and `attn_pool.`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from vitmae.config import locate
from vitmae.errors import UserError, first_line
from vitmae.tokens.patches import Size, pair

ENCODER = "backbone.vit."
_ENCODER_PARTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm")
_HEAD_PARTS = ("head", "fc_norm", "attn_pool")
_PUBLISHED_MAE = re.compile(
    r"mae_(pretrain|visualize|finetuned)_vit_(base|large|huge)|facebook/vit-mae-|vit_\w+\.mae\b"
)
_NOT_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|noncommercial|non-commercial|amlr")


@dataclass(frozen=True)
class Weights:
    """Weights as they were read.

    Attributes:
        name: what the user wrote.
        format: the format that was found, in words.
        state: tensors under this project's names.
        names: for each of them, its name in the file.
        unknown: names in the file that this project has no name for.
        grid_size: (grid_h, grid_w) that the positions were made for; None: not said, taken for a square.
        license: of the weights, as an SPDX name in small letters; None: not said.
        notes: what else a user should know, one line each.
        objective: the full name of the class that was trained, for this project's own files; None for others.
    """

    name: str
    format: str
    state: Mapping[str, Tensor]
    names: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    grid_size: Size | None = None
    license: str | None = None
    notes: tuple[str, ...] = ()
    objective: str | None = None

    @property
    def published_as(self) -> str | None:
        """The public architecture of the whole model: as its class says, or as its decoder or head shows."""
        if self.objective is not None:
            return cast(Any, locate(self.objective)).published_as
        heads = {"decoder.pred.weight": "vit_mae", "head.weight": "vit_classifier"}
        return next((layout for name, layout in heads.items() if name in self.state), None)


def translate(
    tensors: Mapping[str, Any], rename: Callable[[str], str | None]
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Rename tensors: `state`, `names` and `unknown` of `Weights`.

    Args:
        tensors: by their names in the file; values that are no tensors are left out.
        rename: gives this project's name, or None if there is none.
    """
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    unknown = []
    for theirs, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        ours = rename(theirs)
        if ours is None:
            unknown.append(theirs)
        else:
            state[ours], names[ours] = tensor, theirs
    return state, names, tuple(unknown)


def rename_start(name: str, starts: Mapping[str, str]) -> str | None:
    """A name with its start replaced; None if it has none of the starts.

    Args:
        name: of a tensor.
        starts: old -> new; one that ends in a full stop stands for all names that start with it, another for itself.
    """
    for old, new in starts.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return new + name.removeprefix(old)
    return None


def from_timm(name: str) -> str | None:
    """A timm VisionTransformer's name in this project; None if there is none."""
    part = name.partition(".")[0]
    if part in _ENCODER_PARTS:
        return ENCODER + name
    return name if part in _HEAD_PARTS else None


def without_prefix(tensors: Mapping[str, Any], landmark: str) -> dict[str, Any]:
    """Remove the prefix that wrappers put before every name (`module.`, `_orig_mod.`, `model.`).

    Args:
        tensors: by their names.
        landmark: a name that shows the prefix: what stands before it.

    Returns:
        The tensors that have the prefix; empty if there is no landmark.
    """
    named = {name: tensor for name, tensor in tensors.items() if isinstance(name, str)}  # an optimiser counts from 0
    prefix = next((name.removesuffix(landmark) for name in named if name.endswith(landmark)), None)
    if prefix is None:
        return {}
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}


def published_license(name: str) -> str | None:
    """The licence of weights that the MAE authors published, by their name: copies do not always say it."""
    return "cc-by-nc-4.0" if _PUBLISHED_MAE.search(name) else None


def is_commercial(license_name: str | None) -> bool | None:
    """Whether a licence allows commercial use; None if there is no licence."""
    return None if license_name is None else _NOT_COMMERCIAL.search(license_name.lower()) is None


def stated_grid(name: str, image_size: Any, patch_size: Any) -> Size:
    """The patch grid of the sizes that a file states.

    Raises:
        UserError: they are no sizes.
    """
    try:
        (height, width), (patch_h, patch_w) = pair(image_size), pair(patch_size)
        return int(height // patch_h), int(width // patch_w)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise unreadable(name, f"image_size={image_size} and patch_size={patch_size} are no sizes") from error


def unreadable(name: str, expected: str) -> UserError:
    """The error for weights that are not those of a vision transformer."""
    return UserError(f"{name} holds no vision transformer: {expected}")


def not_fetched(name: str, error: Exception) -> UserError:
    """The error for weights that the network does not give."""
    reason = first_line(error)
    return UserError(
        f"{name} cannot be downloaded ({reason}): check the network, or copy the files here and give their path"
    )
