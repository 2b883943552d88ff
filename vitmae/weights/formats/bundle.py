"""The bundle, this project's own format: a folder with all that is needed to use a model and to judge it.

    model.safetensors   the weights
    model.json          architecture, grid, channels, mean and std, objective, target, class names, licence, metrics,
                        code version, settings, and the SHA-256 of all this
    README.md           the model card, with the hub's metadata

`vitmae.load` opens it, and so does every command that takes a checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from vitmae.runs.checkpoint_file import FORMAT
from vitmae.tensor_files import write_safetensors
from vitmae.weights.model_card import model_card
from vitmae.weights.saved import Saved, hash_of


def write(objective: Any, saved: Saved, what: str, folder: Path) -> None:
    """Write the three files, of any model.

    Args:
        objective: as `rebuild` makes it.
        saved: what it was made from.
        what: full, or encoder: the backbone with the mean and deviation that it was trained with.
        folder: an existing one.
    """
    about = _about(objective, saved, what)
    state = saved.state
    if what == "encoder":
        state = {name: t for name, t in state.items() if name.startswith("backbone.") or name in ("mean", "std")}
    write_safetensors(state, folder / "model.safetensors")
    about = json.loads(json.dumps(about))  # as it will be read
    about["sha256"] = hash_of(about)
    (folder / "README.md").write_text(model_card(about), encoding="utf-8")
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _about(objective: Any, saved: Saved, what: str) -> dict[str, Any]:
    """The content of model.json."""
    backbone = objective.backbone
    architecture: dict[str, Any] = {
        "name": saved.settings["backbone"].get("name", type(backbone).__name__),
        "img_size": list(backbone.img_size),
        "in_chans": backbone.in_chans,
        "patch_size": list(backbone.patch_size),
        "grid_size": list(backbone.grid_size),
        "embed_dim": backbone.embed_dim,
        "depth": backbone.depth,
        "num_heads": backbone.num_heads,
        "num_prefix_tokens": backbone.num_prefix_tokens,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
    }
    return {
        "vitmae_format": FORMAT,
        "what": what,
        "objective": saved.objective,
        "title": objective.title,
        "paper": objective.paper,
        "published_as": objective.published_as,
        "target": objective.predicts,
        "architecture": architecture,
        "mean": objective.mean.flatten().tolist(),
        "std": objective.std.flatten().tolist(),
        "class_names": saved.facts.get("class_names"),
        "num_classes": saved.facts.get("num_classes"),
        "crop_pct": saved.crop_pct,
        "initial_weights": saved.facts.get("initial_weights"),
        "license": saved.facts.get("license"),
        "metrics": saved.facts.get("metrics"),
        "git_commit": saved.facts.get("git_commit"),
        "config": saved.settings,
    }
