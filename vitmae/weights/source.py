"""Weights from elsewhere under this project's names, and what is known of them.

This project's names are those of the modules: `backbone.vit.` and timm's names, `decoder.` and those of
`vitmae.models.mae.Decoder`, `head.`, `fc_norm.` and `attn_pool.` of a classifier.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from vitmae.config import locate
from vitmae.errors import UserError, first_line
from vitmae.tokens.patches import Size

ENCODER = "backbone.vit."
_ENCODER_PARTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "blocks", "norm")
_HEAD_PARTS = ("head", "fc_norm", "attn_pool")
_PUBLISHED_MAE = re.compile(
    r"mae_(pretrain|visualize|finetuned)_vit_(base|large|huge)|facebook/vit-mae-|vit_\w+\.mae\b"
)
_NOT_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|noncommercial|non-commercial|amlr")


@dataclass(frozen=True)
class Source:
    """Weights, translated.

    Attributes:
        name: what the user wrote.
        format: what it turned out to be, in words.
        state: tensors under this project's names.
        names: for each of them, what it is called there.
        unknown: what is there and has no name here.
        grid_size: (grid_h, grid_w) that the positions were made for; None: not said, a square then.
        license: of the weights, as an SPDX name in small letters; None: not said.
        notes: what else a user should know, one line each.
        objective: the full name of the class that was trained, where it was this project's; None elsewhere.
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
        """The public architecture that all of it belongs to: as the class says, or as head and decoder tell."""
        if self.objective is not None:
            return cast(Any, locate(self.objective)).published_as
        heads = {"decoder.pred.weight": "vit_mae", "head.weight": "vit_classifier"}
        return next((layout for name, layout in heads.items() if name in self.state), None)


def translate(
    tensors: Mapping[str, Any], rename: Callable[[str], str | None]
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Rename tensors: (state, names, unknown) of a `Source`.

    Args:
        tensors: under their names; values that are no tensors are passed over.
        rename: gives a name here, or None where there is none.
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


def from_timm(name: str) -> str | None:
    """A timm VisionTransformer's name in this project."""
    part = name.partition(".")[0]
    if part in _ENCODER_PARTS:
        return ENCODER + name
    return name if part in _HEAD_PARTS else None


def without_prefix(tensors: Mapping[str, Any], landmark: str) -> dict[str, Any]:
    """Take off what wrappers put before every name (`module.`, `_orig_mod.`, `model.`).

    Args:
        tensors: under their names.
        landmark: a name that must be there, after any prefix.

    Returns:
        The tensors behind the prefix of the landmark; empty where it is missing.
    """
    prefix = next((name.removesuffix(landmark) for name in tensors if name.endswith(landmark)), None)
    if prefix is None:
        return {}
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def published_license(name: str) -> str | None:
    """The licence of the MAE authors' own weights, which copies of them elsewhere do not always say."""
    return "cc-by-nc-4.0" if _PUBLISHED_MAE.search(name) else None


def is_commercial(license_name: str | None) -> bool | None:
    """Whether a licence allows commercial use; None where there is no licence to judge by."""
    return None if license_name is None else _NOT_COMMERCIAL.search(license_name.lower()) is None


def unreadable(name: str, expected: str) -> UserError:
    """What is said of weights that are not those of a vision transformer."""
    return UserError(f"{name} holds no vision transformer: {expected}")


def not_fetched(name: str, error: Exception) -> UserError:
    """What is said where the network is needed and does not answer."""
    reason = first_line(error)
    return UserError(f"{name} cannot be downloaded ({reason}): see to the network, or copy it here and give its path")
