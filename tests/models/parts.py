"""Small objectives and batches that the tests of this folder share."""

import torch

from vitmae.backbones.timm_vit import TimmViT
from vitmae.batch import Batch
from vitmae.models.mae import MAE
from vitmae.models.masked_patch import MaskedPatch
from vitmae.models.supervised import Supervised
from vitmae.randomness import fold_indices
from vitmae.recipe import Recipe

OBJECTIVES = {"mae": MAE, "masked_patch": MaskedPatch, "vit": Supervised}


def tiny_backbone(name="vit_tiny_patch16_224", img_size=(16, 24), patch_size=4, in_chans=3, **settings):
    if "r26" not in name and "r50" not in name:
        settings = {"patch_size": patch_size, "embed_dim": 32, "num_heads": 2} | settings
    return TimmViT(name, img_size=img_size, in_chans=in_chans, depth=settings.pop("depth", 2), **settings)


def objective(kind, backbone=None, **settings):
    torch.manual_seed(0)
    backbone = backbone or tiny_backbone()
    if kind == "vit":
        settings = {"num_classes": 10} | settings
    statistics = {"mean": [0.45] * backbone.in_chans, "std": [0.25] * backbone.in_chans}
    return OBJECTIVES[kind](backbone, Recipe(), **statistics, **settings)


def batch(backbone, size=4, first=0):
    """Smooth random images, so that a patch has a mean colour worth predicting."""
    drawn = torch.Generator().manual_seed(first)
    low = torch.rand(size, backbone.in_chans, 4, 4, generator=drawn)
    images = torch.nn.functional.interpolate(low, backbone.img_size, mode="bicubic").clamp(0, 1)
    labels = torch.arange(first, first + size) % 10
    return Batch((images * 255).to(torch.uint8), labels, fold_indices(1, torch.arange(first, first + size)), first)
