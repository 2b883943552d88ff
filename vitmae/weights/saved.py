"""Read this project's own models (a checkpoint, a run directory, a bundle) and build them again.

    run directory   `runs/<date>/<time>-<name>/`: its best checkpoint, or its last if there is no best
    checkpoint      Lightning's file with `vitmae_config`, the settings of the run
    bundle          a folder with `model.safetensors` and `model.json`

Building calls the classes that the settings name, so settings that name others than a file may (`vitmae.classes`) are
refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from vitmae.backbones.backbone import Backbone
from vitmae.centre_crop import kept_share
from vitmae.classes import check_classes, check_plain, unlisted_classes
from vitmae.config import build, check_settings, locate
from vitmae.errors import UserError
from vitmae.limits import check_value
from vitmae.plain_files import read_json
from vitmae.runs.checkpoint_file import is_checkpoint, present_names, refuse_newer
from vitmae.runs.settings import check_types
from vitmae.tensor_files import read_file, refuse_nonfinite
from vitmae.tokens.patches import Size, pair
from vitmae.weights.shapes import check_shapes
from vitmae.weights.translation import Weights

_CHECKPOINTS = ("best.ckpt", "last.ckpt")
_NEEDED = {
    "model": {"_target_", "optimizer"},
    "model.optimizer": {"_target_"},
    "backbone": {"_target_", "img_size", "in_chans"},
}
"""The settings without which no model can be built."""
_FACTS: dict[str, Any] = {
    "class_names": Sequence[str] | None,
    "num_classes": Annotated[int, Ge(1)] | None,
    "crop_pct": Annotated[float, Gt(0), Le(1)] | None,
    "initial_weights": str | None,
    "license": str | None,
    "git_commit": str | None,
    "metrics": Mapping[str, float] | None,
    "what": Literal["encoder", "full"] | None,
}
"""The facts that are used, and what they must be."""


@dataclass(frozen=True)
class Saved:
    """A model of this project as it was saved.

    Attributes:
        path: the file or folder that was read.
        state: of the objective, under its own names.
        settings: of the run, as plain values.
        facts: what else is known; may hold ``class_names``, ``crop_pct``, ``metrics``, ``license``,
            ``initial_weights`` and ``git_commit``.
    """

    path: Path
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def objective(self) -> str:
        """The name of the objective's class."""
        return str(self.settings["model"]["_target_"]).rpartition(".")[2]

    @property
    def objective_class(self) -> Any:
        """The objective's class."""
        return locate(self.settings["model"]["_target_"])

    @property
    def is_full(self) -> bool:
        """Whether it has the decoder or head too."""
        return bool(self.facts.get("what", "full") == "full")

    @property
    def img_size(self) -> Size:
        """(H, W) of its images."""
        return pair(self.settings["backbone"]["img_size"])

    @property
    def crop_pct(self) -> float:
        """The share of an image's shorter side that validation crops out."""
        known = self.facts.get("crop_pct")  # runs of earlier versions do not save it
        return known or kept_share(self.settings.get("data", {}).get("crop_pct"), self.img_size)

    def at_size(self, img_size: Size) -> "Saved":
        """The same weights under the settings of another image size (H, W)."""
        settings = {**self.settings, "backbone": {**self.settings["backbone"], "img_size": list(img_size)}}
        facts = {name: fact for name, fact in self.facts.items() if name != "crop_pct"}  # null depends on the size
        return replace(self, settings=settings, facts=facts)


def find_saved(path: Path) -> Path | None:
    """The checkpoint or bundle that a path stands for; None if there is none."""
    if path.is_dir():
        if (path / "model.json").is_file():
            return path
        candidates = (path / "checkpoints" / name for name in _CHECKPOINTS)
        return next((file for file in candidates if file.is_file()), None)
    return path if path.is_file() else None


def home_of(path: Path) -> Path:
    """Where files made from a checkpoint or bundle are saved: its run's directory, or the folder that it lies in."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def read_saved(path: Path, trust: Sequence[str] = ()) -> Saved:
    """Read a checkpoint, a run directory or a bundle.

    Args:
        path: of the file or folder.
        trust: further classes that its settings may build, see `vitmae.classes`.

    Raises:
        UserError: there is none, or it is damaged, not of this project, from a newer version, or names a class that
            it may not build.
    """
    found = find_saved(path)
    if found is None:
        raise UserError(f"{path}: there is no checkpoint, run directory or bundle")
    saved = _read_bundle(found, trust) if found.is_dir() else from_checkpoint(read_file(found), found, trust)
    if saved is None:
        raise UserError(f"{path} is no checkpoint of this project: start a run from it with backbone.weights={path}")
    return saved


def from_checkpoint(content: Mapping[str, Any], path: Path, trust: Sequence[str] = ()) -> Saved | None:
    """A checkpoint from its content; None if it is not of this project.

    Raises:
        UserError: it was written by a newer version, is damaged, or names a class that it may not build.
    """
    if not is_checkpoint(content):
        return None
    refuse_newer(content.get("vitmae_format", 1), path)
    facts = content.get("vitmae_facts")
    facts = dict(facts) if isinstance(facts, Mapping) else {}
    run = path.resolve().parent.parent
    for name, file, key in (("metrics", "summary.json", "metrics"), ("git_commit", "environment.json", "git")):
        if (run / file).is_file() and isinstance(value := read_json(run / file).get(key), Mapping):
            facts.setdefault(name, value.get("commit") if key == "git" else value)
    return _checked(path, content.get("state_dict"), content.get("vitmae_config"), facts, trust)


def _read_bundle(folder: Path, trust: Sequence[str]) -> Saved:
    about = read_json(folder / "model.json")
    if "vitmae_format" not in about:
        raise UserError(f"{folder}/model.json is not that of a bundle of this project")
    refuse_newer(about["vitmae_format"], folder)
    if about.get("sha256", hash_of(about)) != hash_of(about):
        raise UserError(
            f"{folder}/model.json is damaged: it does not have the SHA-256 that it states; get it again, or remove "
            "the line sha256 if you have edited the file"
        )
    facts = {key: value for key, value in about.items() if key not in ("config", "sha256")}
    return _checked(folder, read_file(folder / "model.safetensors"), about.get("config"), facts, trust)


def hash_of(about: Mapping[str, Any]) -> str:
    """SHA-256 of what a bundle's model.json holds, except of this number itself."""
    others = {key: value for key, value in about.items() if key != "sha256"}
    return sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _checked(path: Path, state: Any, settings: Any, facts: Mapping[str, Any], trust: Sequence[str]) -> Saved:
    """A saved model, under the present names of its classes.

    Raises:
        UserError: it cannot be built, or holds something else than it should.
    """
    if not isinstance(settings, Mapping) or not isinstance(state, Mapping):
        raise UserError(f"{path} is damaged: its settings or its weights are missing; get it again")
    check_plain(settings, path)
    settings = present_names(settings)
    nodes = {part: settings.get(part) for part in ("model", "backbone")}
    check_classes(nodes, path, trust)
    optimizer = nodes["model"].get("optimizer") if isinstance(nodes["model"], Mapping) else None
    for place, keys in _NEEDED.items():
        node = optimizer if place == "model.optimizer" else nodes[place]
        if not isinstance(node, Mapping) or not keys <= node.keys():
            raise UserError(f"{path} is damaged: the settings of its {place} are missing; get it again")
    if not {"mean", "std"} <= state.keys() or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} is damaged: its weights are missing; get it again")
    refuse_nonfinite(state, path)
    saved = Saved(path, state, settings, facts)
    try:
        check_types(settings)
        for name, annotation in _FACTS.items():
            check_value(name, facts.get(name), annotation)
        check_settings(nodes)
        if not unlisted_classes(nodes):
            check_shapes(state, settings, lambda: build_objective(saved))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return saved


def as_weights(saved: Saved, name: str) -> Weights:
    """Weights for another model, without what was measured on the data (mean, deviation, baselines)."""
    with torch.device("meta"):
        objective = build_objective(saved)
    measured = {name for name, _ in objective.named_buffers() if "." not in name}
    state = {name: tensor for name, tensor in saved.state.items() if name not in measured}
    ema_decay = saved.settings["model"]["optimizer"].get("ema_decay")
    notes = (f"the averaged weights of its training (EMA, {ema_decay:g})",) if ema_decay else ()
    return Weights(
        name,
        f"this project's {saved.objective}",
        state,
        {key: key for key in state},
        grid_size=objective.backbone.grid_size,
        license=saved.facts.get("license"),
        notes=notes,
        objective=saved.settings["model"]["_target_"],
    )


def build_backbone(settings: Mapping[str, Any]) -> Backbone:
    """The backbone of a run's settings, with fresh weights.

    Raises:
        UserError: the backbone refuses its settings.
    """
    backbone: Backbone = build(settings["backbone"])
    return backbone


def build_objective(saved: Saved) -> Any:
    """The objective of a run's settings, with fresh weights and the saved mean and deviation.

    Raises:
        UserError: the objective refuses its settings.
    """
    node = dict(saved.settings["model"])
    if "num_classes" in node:
        node["num_classes"] = _num_classes(saved, node["num_classes"])
    mean, std = (saved.state[name].flatten().tolist() for name in ("mean", "std"))
    return build(node, backbone=build_backbone(saved.settings), mean=mean, std=std)


def _num_classes(saved: Saved, configured: int | None) -> int:
    """As the run knew it; of an older run the rows of its head, or the configured number; 1 for an encoder alone."""
    if not saved.is_full:
        return 1
    if saved.facts.get("num_classes"):
        return int(saved.facts["num_classes"])
    if "head.bias" in saved.state:
        return len(saved.state["head.bias"])
    return configured or len(saved.facts.get("class_names") or [None])


def rebuild(saved: Saved) -> Any:
    """The objective as it was saved, in eval mode; if only the encoder is saved, the rest is fresh.

    Raises:
        UserError: the objective refuses its settings, or the weights are not those of the settings.
    """
    objective = build_objective(saved)
    try:
        missing = objective.load_state_dict(saved.state, strict=saved.is_full).missing_keys
        if any(name.startswith("backbone.") for name in missing):
            raise RuntimeError(f"{missing[0]} is missing")
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{saved.path}: its weights are not those of its settings ({reason})") from error
    return objective.eval()
