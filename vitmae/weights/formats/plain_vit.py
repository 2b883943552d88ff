"""Which models the files of other libraries can hold, checked before anything is written."""

import re
from typing import Any

from torch import nn

from vitmae.backbones.timm_vit import TimmViT
from vitmae.errors import UserError

_IN_BLOCK = re.compile(r"(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)$")


def cannot_hold(layout: str, reason: str, remedy: str = "export format=bundle, which holds all") -> UserError:
    """The error for a model that the format cannot hold."""
    return UserError(f"format={layout} cannot hold this model: {reason}; {remedy}")


def require_timm_vit(backbone: Any, layout: str) -> None:
    """Refuse a backbone that timm cannot build, such as a user's own.

    Raises:
        UserError: it is not timm's.
    """
    if not isinstance(backbone, TimmViT):
        raise cannot_hold(layout, f"its backbone is a {type(backbone).__name__}, not a ViT of timm")


def require_plain_vit(backbone: Any, layout: str) -> None:
    """Refuse a backbone that is more than the ViT of https://arxiv.org/abs/2010.11929.

    Args:
        backbone: of the model.
        layout: the format's name, for the message.

    Raises:
        UserError: it is not timm's, or it is a hybrid, has no CLS token or register tokens, or has other blocks or
            another activation.
    """
    require_timm_vit(backbone, layout)
    vit = backbone.vit
    if backbone.is_hybrid:
        raise cannot_hold(layout, "its patches come from a ResNet", "export format=timm or format=bundle")
    if backbone.num_prefix_tokens != 1 or not backbone.has_cls or vit.no_embed_class:
        raise cannot_hold(
            layout,
            "its prefix tokens must be one CLS token with its own position, and no register tokens",
            "export format=timm or format=bundle",
        )
    strange = [name for name, _ in vit.blocks.named_parameters() if not _IN_BLOCK.search(name)]
    strange += [f"norm_pre.{name}" for name, _ in vit.norm_pre.named_parameters()]
    if strange:
        raise cannot_hold(layout, f"it has no place for {strange[0]}", "export format=timm or format=bundle")
    if not all(isinstance(block.mlp.act, nn.GELU) for block in vit.blocks):
        raise cannot_hold(layout, "its activation is not GELU", "export format=timm or format=bundle")


def require_encoder_only(objective: str, what: str, layout: str) -> None:
    """Refuse the decoder or head of an objective that the format does not know.

    Args:
        objective: the name of its class, for the message.
        what: full or encoder.
        layout: the format's name, for the message.

    Raises:
        UserError: the whole model is asked for.
    """
    if what == "full":
        raise cannot_hold(layout, f"it has no place for what {objective} predicts with", "export what=encoder")
