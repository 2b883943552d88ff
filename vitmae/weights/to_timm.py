"""A folder that timm opens by itself: `timm.create_model("local-dir:FOLDER", pretrained=True)`, or from the hub."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vitmae.weights.own import Saved, crop_pct
from vitmae.weights.plain_vit import require_encoder_only
from vitmae.weights.source import ENCODER

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
    is_classifier = saved.objective == "Supervised"
    if not is_classifier:
        require_encoder_only(saved.objective, what, "timm")
    pool = "token" if backbone.has_cls else ""
    if is_classifier:
        pool = {"cls": "token", "avg": "avg", "map": "map"}[objective.pool]
    # what pools belongs to the encoder that was trained with it; the last layer is what tells classes apart
    kept = (ENCODER, "fc_norm.", "attn_pool.", *(["head."] if what == "full" else []))
    tensors = {name.removeprefix(ENCODER): tensor.contiguous() for name, tensor in saved.state.items()
               if name.startswith(ENCODER) or (is_classifier and name.startswith(kept))}  # fmt: skip
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
            "crop_pct": crop_pct(saved.settings),
            "crop_mode": "center",
            "mean": objective.mean.flatten().tolist(),
            "std": objective.std.flatten().tolist(),
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.backbone.stem.conv" if backbone.is_hybrid else "patch_embed.proj",
            "classifier": "head",
        },
    }  # fmt: skip
    if num_classes and saved.facts.get("class_names"):
        config["label_names"] = list(saved.facts["class_names"])
    if saved.facts.get("license"):
        config["pretrained_cfg"]["license"] = saved.facts["license"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
