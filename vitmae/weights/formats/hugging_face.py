"""Hugging Face's ViT and ViTMAE, read and written without their library.

Read: a folder or a hub repository. Its tensors have the names of the files on the hub
(`encoder.layer.0.attention.attention.query`), or those of newer versions of the library (`layers.0.attention.q_proj`).
Written: a folder with the hub's names, which the library opens as ViTMAEForPreTraining, ViTForImageClassification or
ViTModel.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.plain_files import read_json
from vitmae.tensor_files import read_file, write_safetensors
from vitmae.weights.formats.plain_vit import cannot_hold, require_encoder_only, require_plain_vit
from vitmae.weights.saved import Saved
from vitmae.weights.translation import (
    ENCODER,
    Weights,
    not_fetched,
    published_license,
    rename_start,
    stated_grid,
    translate,
    unreadable,
)

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LANDMARK = "embeddings.patch_embeddings.projection.weight"

_QKV = {"q": "query", "k": "key", "v": "value"}
_NEWER: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"^decoder\.(decoder_encoder\.layer|decoder_layers)\."), "decoder.decoder_layers."),
    (re.compile(r"^layers\."), "encoder.layer."),
    (re.compile(r"\.attention\.([qkv])_proj\."), lambda m: f".attention.attention.{_QKV[m[1]]}."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)
"""Patterns in the names of newer versions of the library -> the hub's."""

_NAMES = {
    "embeddings.cls_token": ENCODER + "cls_token",
    "embeddings.position_embeddings": ENCODER + "pos_embed",
    "embeddings.patch_embeddings.projection.": ENCODER + "patch_embed.proj.",
    "layernorm.": ENCODER + "norm.",
    "encoder.layer.": ENCODER + "blocks.",
    "decoder.decoder_embed.": "decoder.embed.",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.pos_embed",
    "decoder.decoder_layers.": "decoder.blocks.",
    "decoder.decoder_norm.": "decoder.norm.",
    "decoder.decoder_pred.": "decoder.pred.",
    "classifier.": "head.",
}
"""Starts of the hub's names -> of this project's, see `rename_start`."""

_BLOCK = re.compile(r"(.+\.blocks\.\d+\.)(.+)")
_IN_BLOCK = {
    "layernorm_before.": "norm1.",
    "attention.attention.qkv.": "attn.qkv.",
    "attention.output.dense.": "attn.proj.",
    "layernorm_after.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
}
"""The same behind a block's number, where query, key and value are one tensor."""


def download(name: str) -> Path:
    """Download a hub repository's weights and settings, unless they are in the cache; it may also hold a bundle.

    Returns:
        The folder.

    Raises:
        UserError: there is no such repository, or it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    about = ["config.json", "model.json", "README.md"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*about, "model.safetensors*", "model-*.safetensors"]))
        if not any((folder / file).exists() for file in _FILES):
            folder = Path(snapshot_download(name, allow_patterns=[*about, "pytorch_model.bin*", "pytorch_model-*.bin"]))
    except Exception as error:  # a network fails in many ways, each library's its own
        raise not_fetched(name, error) from error
    return folder


def read_folder(folder: Path, name: str) -> Weights:
    """Translate a folder that `save_pretrained` wrote.

    Raises:
        UserError: it holds another kind of model, or its files are missing or damaged.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        raise unreadable(name, f"its model_type is {kind}; must be vit or vit_mae")
    tensors = _hub_names(_read_tensors(folder))
    if not tensors:
        raise unreadable(name, f"it has no {_LANDMARK}")
    state, names, unknown = translate(_fuse(tensors), _from_hub)
    names = {ours: re.sub(r"\.qkv\.", ".{query,key,value}.", theirs) for ours, theirs in names.items()}
    named, usual = config.get("architectures"), "ViTMAEForPreTraining" if kind == "vit_mae" else "ViTModel"
    origin = f"{name} {config.get('_name_or_path', '')}"
    eps = config.get("layer_norm_eps", 1e-12)
    notes = () if eps == 1e-6 else (f"layer norms have eps {eps} there and 1e-6 here: outputs differ by about 1e-6",)
    return Weights(
        name,
        f"Hugging Face {named[0] if isinstance(named, list) and named else usual}",
        state,
        names,
        unknown,
        stated_grid(name, config.get("image_size", 224), config.get("patch_size", 16)),
        published_license(origin) or _card_license(folder),
        notes,
    )


def _from_hub(name: str) -> str | None:
    """The hub's name, with query, key and value fused, in this project; None if there is none."""
    ours = rename_start(name, _NAMES)
    block = _BLOCK.fullmatch(ours or "")
    if block is None:
        return ours
    part = rename_start(block[2], _IN_BLOCK)
    return part and block[1] + part


def _to_hub(name: str) -> str:
    """This project's name on the hub, with query, key and value fused."""
    if block := _BLOCK.fullmatch(name):
        name = f"{block[1]}{rename_start(block[2], {ours: theirs for theirs, ours in _IN_BLOCK.items()})}"
    hub = rename_start(name, {ours: theirs for theirs, ours in _NAMES.items()})
    assert hub is not None, f"{name} has passed as a plain ViT's"
    return hub


def _hub_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the hub's names, without the prefix `vit.`; empty if there is no patch embedding."""
    prefix = next((name.removesuffix(_LANDMARK) for name in tensors if name.endswith(_LANDMARK)), None)
    if prefix is None:
        return {}
    renamed = {}
    for name, tensor in tensors.items():
        hub = name.removeprefix(prefix)
        for pattern, replacement in _NEWER:
            hub = pattern.sub(replacement, hub)
        renamed[hub] = tensor
    return renamed


def _fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one tensor per block, as this project has them."""
    fused = {}
    for name, tensor in tensors.items():
        before, _, after = name.partition(".attention.attention.")
        part, _, kind = after.partition(".")
        parts = [tensors.get(f"{before}.attention.attention.{other}.{kind}") for other in _QKV.values()]
        if part not in _QKV.values():
            fused[name] = tensor
        elif part == "query" and all(isinstance(other, Tensor) for other in parts):
            fused[f"{before}.attention.attention.qkv.{kind}"] = torch.cat([t for t in parts if t is not None])
    return fused


def _read_tensors(folder: Path) -> dict[str, Any]:
    """The weights of a folder, from one file or from several that an index names."""
    file = next((folder / file for file in _FILES if (folder / file).exists()), None)
    if file is None:
        raise UserError(f"{folder} has a config.json, but no {_FILES[0]} or {_FILES[2]} beside it")
    if file.suffix != ".json":
        return read_file(file)
    tensors: dict[str, Any] = {}
    parts = read_json(file).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise UserError(f"{file} is damaged: its weight_map must name files; get it again")
    for part in sorted(set(parts.values())):
        if Path(part).name != part:
            raise UserError(f"{file} names a file outside of its folder: {part}")
        tensors |= read_file(folder / part)
    return tensors


def _card_license(folder: Path) -> str | None:
    """The licence in the model card's header."""
    card = folder / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace")[:4000] if card.exists() else ""
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)", header, re.MULTILINE)
    return found[1].lower() if found and header.startswith("---") else None


_BICUBIC = 3  # Pillow's number for it
_ARCHITECTURES = {"vit_mae": "ViTMAEForPreTraining", "vit_classifier": "ViTForImageClassification"}


def write(objective: Any, saved: Saved, what: str, folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and `preprocessor_config.json`.

    Args:
        objective: as `rebuild` makes it.
        saved: what it was made from.
        what: full, with decoder or head, or encoder.
        folder: an existing one.

    Raises:
        UserError: the library has no such model.
    """
    backbone = objective.backbone
    require_plain_vit(backbone, "hf")
    if objective.published_as is None:
        require_encoder_only(saved.objective, what, "hf")
    architecture = _ARCHITECTURES[objective.published_as] if what == "full" else "ViTModel"
    pool = objective.pool if objective.published_as == "vit_classifier" else "cls"
    if pool == "avg" or (pool == "map" and what == "full"):
        raise cannot_hold("hf", f"its ViT reads CLS, not pool={pool}", "export format=timm or format=bundle")
    is_square = len({*backbone.img_size}) == len({*backbone.patch_size}) == 1
    if architecture == "ViTMAEForPreTraining" and not is_square:
        raise cannot_hold("hf", "Hugging Face's ViTMAE has square images and patches only", "export what=encoder")
    tensors: dict[str, Tensor] = {}
    for name, tensor in saved.state.items():
        if "." in name and (what == "full" or name.startswith(ENCODER)):
            # models with a head or a decoder name their encoder vit.
            before = "vit." if architecture != "ViTModel" and name.startswith(ENCODER) else ""
            tensors |= _split(before + _to_hub(name), tensor)
    config = _config(objective, saved, architecture)
    write_safetensors(tensors, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(objective), indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _split(hub: str, tensor: Tensor) -> dict[str, Tensor]:
    """The reverse of `_fuse` for one tensor."""
    if ".qkv." not in hub:
        return {hub: tensor.contiguous()}
    parts = zip(_QKV.values(), tensor.chunk(3), strict=True)
    return {hub.replace(".qkv.", f".{part}."): chunk.contiguous() for part, chunk in parts}


def _config(objective: Any, saved: Saved, architecture: str) -> dict[str, Any]:
    backbone = objective.backbone
    is_mae = architecture == "ViTMAEForPreTraining"
    sizes = {"image_size": backbone.img_size, "patch_size": backbone.patch_size}
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "vit_mae" if is_mae else "vit",
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": len(backbone.vit.blocks[0].mlp.fc1.bias),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": backbone.vit.blocks[0].norm1.eps,
        **{key: size[0] if size[0] == size[1] else list(size) for key, size in sizes.items()},
        "num_channels": backbone.in_chans,
        "qkv_bias": backbone.vit.blocks[0].attn.qkv.bias is not None,
    }
    if is_mae:
        decoder = objective.decoder
        config |= {
            "decoder_hidden_size": decoder.mask_token.shape[2],
            "decoder_num_hidden_layers": len(decoder.blocks),
            "decoder_num_attention_heads": decoder.blocks[0].attn.num_heads,
            "decoder_intermediate_size": len(decoder.blocks[0].mlp.fc1.bias),
            "mask_ratio": objective.mask_ratio,
            "norm_pix_loss": objective.norm_pix_loss,
        }
    if architecture == "ViTForImageClassification":
        names = saved.facts.get("class_names") or [f"class {k}" for k in range(objective.num_classes)]
        config |= {
            "id2label": {str(k): name for k, name in enumerate(names)},
            "label2id": {name: k for k, name in enumerate(names)},
        }
    return config


def _preprocessor(objective: Any) -> dict[str, Any]:
    """The settings of the library's image processor: it resizes without a crop, so the model sees the whole image."""
    height, width = objective.backbone.img_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": objective.mean.flatten().tolist(),
        "image_std": objective.std.flatten().tolist(),
    }
