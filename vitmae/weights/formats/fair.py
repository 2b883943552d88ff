"""The files of the MAE authors' code (https://arxiv.org/abs/2111.06377).

    {"model": {timm's names for the encoder, decoder_embed, mask_token, decoder_pos_embed, decoder_blocks, ...}}

The same code writes encoders alone (`mae_pretrain_vit_base.pth`), encoders with a decoder (`…_full.pth`, and every
file of a user's training) and classifiers (`mae_finetuned_…`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitmae.weights.formats.plain_vit import cannot_hold, require_encoder_only, require_plain_vit
from vitmae.weights.saved import Saved
from vitmae.weights.translation import (
    ENCODER,
    Weights,
    from_timm,
    published_license,
    rename_start,
    translate,
    without_prefix,
)

_DECODER = {
    "decoder_embed.": "decoder.embed.",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos_embed",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.pred.",
}
"""Starts of the names in a file -> of this project's names, see `rename_start`."""


def read(content: Mapping[str, Any], name: str) -> Weights | None:
    """Translate such a file; None if it has another format.

    Args:
        content: of the file.
        name: as the user wrote it.
    """
    if not isinstance(content.get("model"), Mapping):
        return None
    tensors = without_prefix(content["model"], "patch_embed.proj.weight")
    if not tensors:
        return None
    state, names, unknown = translate(tensors, from_fair)
    parts = "classifier" if "head.weight" in state else "encoder"
    parts = "encoder and decoder" if "decoder.pred.weight" in state else parts
    license_name = content.get("license") if isinstance(content.get("license"), str) else published_license(name)
    notes: tuple[str, ...] = ()
    if license_name is None and parts != "classifier":
        notes = ("if these are the weights that the MAE authors published, their licence is CC-BY-NC-4.0",)
    return Weights(name, f"FAIR's layout, {parts}", state, names, unknown, license=license_name, notes=notes)


def from_fair(name: str) -> str | None:
    """The MAE authors' name in this project."""
    return rename_start(name, _DECODER) or from_timm(name)


def to_fair(name: str) -> str:
    """This project's name in the MAE authors' code."""
    return rename_start(name, {ours: theirs for theirs, ours in _DECODER.items()}) or name.removeprefix(ENCODER)


def write(objective: Any, saved: Saved, what: str, folder: Path) -> None:
    """Write `mae.pth`, `finetune.pth` of a classifier, or `encoder.pth`.

    Args:
        objective: as `rebuild` makes it.
        saved: what it was made from.
        what: full, with decoder or head, or encoder.
        folder: an existing one.

    Raises:
        UserError: the MAE authors' code has no such model.
    """
    backbone, published_as = objective.backbone, objective.published_as
    require_plain_vit(backbone, "fair")
    if published_as is None:
        require_encoder_only(saved.objective, what, "fair")
    if published_as == "vit_classifier" and what == "full" and objective.pool == "map":
        raise cannot_hold("fair", "its classifiers read CLS or the average, and this one pools by attention")
    if backbone.grid_size[0] != backbone.grid_size[1] or backbone.patch_size[0] != backbone.patch_size[1]:
        raise cannot_hold("fair", "its files do not say their grid, and readers take it for a square")
    kept = ("backbone.", "decoder.", "head.", "fc_norm.") if what == "full" else ("backbone.",)
    tensors = {to_fair(name): tensor for name, tensor in saved.state.items() if name.startswith(kept)}
    content: dict[str, Any] = {"model": tensors}
    if saved.facts.get("license"):
        content["license"] = saved.facts["license"]
    name = {"vit_mae": "mae", "vit_classifier": "finetune"}[published_as] if what == "full" else "encoder"
    torch.save(content, folder / f"{name}.pth")
