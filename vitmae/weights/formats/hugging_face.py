"""Hugging Face's ViT and ViTMAE, read from a folder or a hub repository and written, without their library.

Two sets of names are about: those that the files on the hub have (`encoder.layer.0.attention.attention.query`), which
is what is written here, and those that newer versions of the library have in memory (`layers.0.attention.q_proj`).

Written: a folder that the library opens by itself, as ViTMAEForPreTraining, ViTForImageClassification or ViTModel.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitmae.errors import UserError
from vitmae.tensor_files import read_file, read_json
from vitmae.tokens.patches import Size, pair
from vitmae.weights.formats.plain_vit import cannot_hold, require_encoder_only, require_plain_vit
from vitmae.weights.saved import Saved
from vitmae.weights.source import ENCODER, Source, not_fetched, published_license, translate, unreadable

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LANDMARK = "embeddings.patch_embeddings.projection.weight"

_QKV = {"q": "query", "k": "key", "v": "value"}
_TO_HUB: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"^decoder\.(decoder_encoder\.layer|decoder_layers)\."), "decoder.decoder_layers."),
    (re.compile(r"^layers\."), "encoder.layer."),
    (re.compile(r"\.attention\.([qkv])_proj\."), lambda m: f".attention.attention.{_QKV[m[1]]}."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)
"""From the names in memory, and those that 5.x writes, to the hub's."""

NAMES = {
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
"""Names there and names here; a full stop at the end stands for all that follows."""

IN_BLOCK = {
    "layernorm_before.": "norm1.",
    "attention.attention.qkv.": "attn.qkv.",
    "attention.output.dense.": "attn.proj.",
    "layernorm_after.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
}
"""The same within a block, after its number; query, key and value are one tensor here."""


def download(name: str) -> Path:
    """The folder of a hub repository's weights and settings, from the cache or the hub; a bundle may lie there too.

    Raises:
        UserError: there is no such repository, or it cannot be fetched.
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


def read_folder(folder: Path, name: str) -> Source:
    """Translate a folder that `save_pretrained` wrote.

    Raises:
        UserError: it holds another kind of model, or its files are missing or damaged.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("vit", "vit_mae"):
        raise unreadable(name, f"its model_type is {kind}, and of Hugging Face's models vit and vit_mae are read")
    tensors = _hub_names(_tensors(folder))
    if not tensors:
        raise unreadable(name, f"it has no {_LANDMARK}")
    state, names, unknown = translate(_fuse(tensors), from_hub)
    names = {ours: re.sub(r"\.qkv\.", ".{query,key,value}.", theirs) for ours, theirs in names.items()}
    architecture = (config.get("architectures") or ["ViTMAEForPreTraining" if kind == "vit_mae" else "ViTModel"])[0]
    origin = f"{name} {config.get('_name_or_path', '')}"
    eps = config.get("layer_norm_eps", 1e-12)
    notes = () if eps == 1e-6 else (f"layer norms have eps {eps} there and 1e-6 here: outputs differ by about 1e-6",)
    return Source(
        name,
        f"Hugging Face {architecture}",
        state,
        names,
        unknown,
        _grid(config),
        published_license(origin) or _card_license(folder),
        notes,
    )


def from_hub(name: str) -> str | None:
    """A hub file's name, query, key and value fused, in this project."""
    for theirs, ours in NAMES.items():
        if name == theirs:
            return ours
        if theirs.endswith(".") and name.startswith(theirs):
            rest = name.removeprefix(theirs)
            return ours + rest if not ours.endswith("blocks.") else _in_block(ours, rest)
    return None


def _in_block(ours: str, rest: str) -> str | None:
    number, _, part = rest.partition(".")
    for theirs, here in IN_BLOCK.items():
        if part.startswith(theirs):
            return f"{ours}{number}.{here}{part.removeprefix(theirs)}"
    return None


def _hub_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the model's own prefix `vit.`, and those of the hub throughout."""
    prefix = next((name.removesuffix(_LANDMARK) for name in tensors if name.endswith(_LANDMARK)), None)
    if prefix is None:
        return {}
    renamed = {}
    for name, tensor in tensors.items():
        hub = name.removeprefix(prefix)
        for pattern, replacement in _TO_HUB:
            hub = pattern.sub(replacement, hub)
        renamed[hub] = tensor
    return renamed


def _fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack query, key and value into one tensor, as they are here."""
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


def _tensors(folder: Path) -> dict[str, Any]:
    """The weights of a folder, in one file or in several that an index names."""
    file = next((folder / file for file in _FILES if (folder / file).exists()), None)
    if file is None:
        raise UserError(f"{folder} has a config.json, but no {_FILES[0]} or {_FILES[2]} beside it")
    if file.suffix != ".json":
        return read_file(file)
    tensors: dict[str, Any] = {}
    for part in sorted(set(read_json(file).get("weight_map", {}).values())):
        if Path(part).name != part:
            raise UserError(f"{file} names a file outside of its folder: {part}")
        tensors |= read_file(folder / part)
    return tensors


def _grid(config: Mapping[str, Any]) -> Size:
    (height, width), (patch_h, patch_w) = pair(config.get("image_size", 224)), pair(config.get("patch_size", 16))
    return height // patch_h, width // patch_w


def _card_license(folder: Path) -> str | None:
    """The licence in the model card's header."""
    card = folder / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace")[:4000] if card.exists() else ""
    found = re.search(r"^license:\s*['\"]?([\w.+-]+)", header, re.MULTILINE)
    return found[1].lower() if found and header.startswith("---") else None


_BLOCKS = re.compile(r"^(backbone\.vit|decoder)\.blocks\.(\d+)\.(.+)$")
_BICUBIC = 3  # in Pillow's counting
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
        raise cannot_hold(
            "hf",
            f"its ViT reads CLS after a final norm, and this one has pool={pool}",
            "export format=timm or format=bundle",
        )
    is_mae = architecture == "ViTMAEForPreTraining"
    is_square = len({*backbone.img_size}) == len({*backbone.patch_size}) == 1
    if is_mae and not is_square:
        raise cannot_hold("hf", "its ViTMAE has square images and patches only", "export what=encoder")
    tensors: dict[str, Tensor] = {}
    for name, tensor in saved.state.items():
        if "." in name and (what == "full" or name.startswith(ENCODER)):
            tensors |= _to_hub(name, tensor, inside=architecture != "ViTModel")
    config = _config(objective, saved, architecture)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(objective), indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _to_hub(name: str, tensor: Tensor, inside: bool) -> dict[str, Tensor]:
    """A tensor, or the three it stands for, under the hub's names; `inside` a model that has the encoder as `vit.`."""
    before = "vit." if inside and name.startswith(ENCODER) else ""
    hub = before + _hub_name(name)
    if ".qkv." not in hub:
        return {hub: tensor.contiguous()}
    parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {hub.replace(".qkv.", f".{part}."): chunk.contiguous() for part, chunk in parts}


def _hub_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if block := _BLOCKS.match(name):
                there, here = next(pair for pair in IN_BLOCK.items() if block[3].startswith(pair[1]))
                rest = f"{block[2]}.{there}{block[3].removeprefix(here)}"
            return theirs + rest
    raise AssertionError(f"{name} has passed as a plain ViT's")


def _config(objective: Any, saved: Saved, architecture: str) -> dict[str, Any]:
    backbone = objective.backbone
    is_mae = architecture == "ViTMAEForPreTraining"
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
        "image_size": _one_or_two(backbone.img_size),
        "patch_size": _one_or_two(backbone.patch_size),
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
    """How their image processor is to prepare images; it resizes without a crop, so all of an image is seen."""
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


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
