"""timm's format, read and written.

Read: a model's name, which timm downloads; a file with timm's names; a folder or a hub repository of timm's.
Written: a folder that timm opens, `timm.create_model("local-dir:FOLDER", pretrained=True)`.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.plain_files import read_json
from vitmae.tensor_files import read_file, write_safetensors
from vitmae.tokens.patches import Size, pair
from vitmae.weights.formats.plain_vit import require_encoder_only, require_timm_vit
from vitmae.weights.saved import Saved
from vitmae.weights.translation import (
    ENCODER,
    Weights,
    from_timm,
    not_fetched,
    published_license,
    translate,
    without_prefix,
)

LANDMARK = "patch_embed.proj.weight"
_WRAPPERS = ("state_dict", "model")


def download(name: str) -> Weights:
    """The weights of a timm name, from timm's cache or the hub.

    Raises:
        UserError: timm has no weights of that name, or they cannot be downloaded.
    """
    model_name = name.removeprefix("timm/")
    if not timm.is_model_pretrained(model_name):
        near = get_close_matches(model_name, timm.list_models(pretrained=True), 1)
        raise UserError(f"timm has no pretrained weights {model_name}" + (f": did you mean {near[0]}?" if near else ""))
    try:
        model: Any = timm.create_model(model_name, pretrained=True)
    except Exception as error:  # a network fails in many ways, each library's its own
        raise not_fetched(name, error) from error
    embed: Any = getattr(model, "patch_embed", None)
    grid_size = pair(embed.grid_size) if getattr(embed, "grid_size", None) else None
    weights = _weights(name, f"timm {model_name}", model.state_dict(), grid_size, model.pretrained_cfg.get("license"))
    if weights is None:
        raise UserError(f"{name} is a {type(model).__name__}, not a vision transformer on patches")
    return weights


def read(content: Mapping[str, Any], name: str) -> Weights | None:
    """Translate a file with timm's names, also as timm's or Lightning's training writes it; None for another format."""
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return _weights(name, "timm's names", without_prefix(content, LANDMARK), None, published_license(name))


def read_folder(folder: Path, name: str) -> Weights | None:
    """Translate a folder with timm's config.json, as timm's export and the hub have it; None for another format.

    Raises:
        UserError: its weights are missing or damaged.
    """
    config = read_json(folder / "config.json")
    if "architecture" not in config:
        return None
    files = (folder / name for name in ("model.safetensors", "pytorch_model.bin"))
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise UserError(f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin beside it")
    architecture, about = config["architecture"], config.get("pretrained_cfg")
    grid_size = _grid(architecture, config.get("model_args"))
    tensors = without_prefix(read_file(file), LANDMARK)
    license_name = about.get("license") if isinstance(about, Mapping) else None
    license_name = license_name if isinstance(license_name, str) else None
    return _weights(name, f"timm {architecture}", tensors, grid_size, license_name)


def _grid(architecture: Any, arguments: Any) -> Size | None:
    """The patch grid of a model, which is built on the meta device to ask it; None if timm cannot build it.

    timm also takes names that it downloads or reads elsewhere (`hf-hub:`, `local-dir:`) and arguments that name files
    (`checkpoint_path`, `pretrained`). A file decides neither: only a model of timm is built, with sizes alone.
    """
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return None
    given = arguments if isinstance(arguments, Mapping) else {}
    sizes = {key: given[key] for key in ("img_size", "patch_size") if given.get(key) is not None}
    try:
        with torch.device("meta"):
            embed: Any = timm.create_model(architecture, pretrained=False, **sizes).patch_embed
        return pair(embed.grid_size)
    except (ArithmeticError, AttributeError, AssertionError, RuntimeError, TypeError, ValueError):
        return None


def _weights(
    name: str, format_name: str, tensors: Mapping[str, Tensor], grid_size: Size | None, license_name: str | None
) -> Weights | None:
    if not tensors:
        return None
    state, names, unknown = translate(tensors, from_timm)
    return Weights(name, format_name, state, names, unknown, grid_size=grid_size, license=license_name)


_SHAPE = ("img_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")


def write(objective: Any, saved: Saved, what: str, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`.

    Args:
        objective: as `rebuild` makes it.
        saved: what it was made from.
        what: full, with the head of a classifier, or encoder.
        folder: an existing one.

    Raises:
        UserError: timm has no such model.
    """
    backbone = objective.backbone
    require_timm_vit(backbone, "timm")
    is_classifier = objective.published_as == "vit_classifier"
    if not is_classifier:
        require_encoder_only(saved.objective, what, "timm")
    pool = "token" if backbone.has_cls else ""
    if is_classifier:
        pool = {"cls": "token", "avg": "avg", "map": "map"}[objective.pool]
    # pooling (fc_norm, attn_pool) belongs to the trained encoder; only the last layer is left out
    kept = (ENCODER, "fc_norm.", "attn_pool.", *(["head."] if what == "full" else []))
    tensors = {
        name.removeprefix(ENCODER): tensor.contiguous()
        for name, tensor in saved.state.items()
        if name.startswith(ENCODER) or (is_classifier and name.startswith(kept))
    }
    num_classes = objective.num_classes if is_classifier and what == "full" else 0
    settings = saved.settings["backbone"]
    shape = {key: settings[key] for key in _SHAPE if settings.get(key) is not None}
    config = {
        "architecture": settings["name"],
        "num_classes": num_classes,
        "num_features": backbone.embed_dim,
        "global_pool": pool,
        "model_args": shape | {"global_pool": pool},
        "pretrained_cfg": {
            "input_size": [backbone.in_chans, *backbone.img_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": saved.crop_pct,
            "crop_mode": "center",
            "mean": objective.mean.flatten().tolist(),
            "std": objective.std.flatten().tolist(),
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.backbone.stem.conv" if backbone.is_hybrid else "patch_embed.proj",
            "classifier": "head",
        },
    }
    if num_classes and saved.facts.get("class_names"):
        config["label_names"] = list(saved.facts["class_names"])
    if saved.facts.get("license"):
        config["pretrained_cfg"]["license"] = saved.facts["license"]
    write_safetensors(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
