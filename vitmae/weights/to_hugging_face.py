"""A folder that Hugging Face's library opens by itself: ViTMAEForPreTraining, ViTForImageClassification or ViTModel.

Names are those of the files on the hub, which old and new versions of the library read.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vitmae.weights.hugging_face import IN_BLOCK, NAMES
from vitmae.weights.own import Saved
from vitmae.weights.plain_vit import cannot_hold, require_encoder_only, require_plain_vit
from vitmae.weights.source import ENCODER

_BLOCKS = re.compile(r"^(backbone\.vit|decoder)\.blocks\.(\d+)\.(.+)$")
_BICUBIC = 3  # in Pillow's counting


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
    backbone, kind = objective.backbone, saved.objective
    require_plain_vit(backbone, "hf")
    architecture = {"MAE": "ViTMAEForPreTraining", "Supervised": "ViTForImageClassification"}.get(kind, "ViTModel")
    if what == "encoder":
        architecture = "ViTModel"
    elif architecture == "ViTModel":
        require_encoder_only(kind, what, "hf")
    pool = getattr(objective, "pool", "cls")
    if pool == "avg" or (pool == "map" and what == "full"):
        raise cannot_hold("hf", f"its ViT reads CLS after a final norm, and this one has pool={pool}",
                          "export format=timm or format=bundle")  # fmt: skip
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
        config |= {"id2label": {str(k): name for k, name in enumerate(names)},
                   "label2id": {name: k for k, name in enumerate(names)}}  # fmt: skip
    return config


def _preprocessor(objective: Any) -> dict[str, Any]:
    """How their image processor is to prepare images; it resizes without a crop, so all of an image is seen."""
    height, width = objective.backbone.img_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True, "size": {"height": height, "width": width}, "resample": _BICUBIC,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": objective.mean.flatten().tolist(), "image_std": objective.std.flatten().tolist(),
    }  # fmt: skip


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
