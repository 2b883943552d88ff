"""Short real runs that the tests of this folder share: digits, an objective of a few thousand parameters, a Trainer."""

from lightning import Trainer

from tests.models.parts import OBJECTIVES
from vitmae.backbones.timm_vit import TimmViT
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.digits import Digits
from vitmae.recipe import Recipe


def digits(**settings):
    data = ImageData(Digits(), img_size=8, in_chans=1, **{"batch_size": 128} | settings)
    data.prepare()
    return data


def tiny_objective(kind, data, **settings):
    backbone = TimmViT("vit_tiny_patch16_224", 8, 1, patch_size=2, embed_dim=16, depth=1, num_heads=2)
    if kind == "vit":
        settings["num_classes"] = data.num_classes
    return OBJECTIVES[kind](backbone, Recipe(base_lr=1e-2), data.mean, data.std, **settings)


def trainer(tmp_path, callbacks, logger=False, **settings):
    settings = {
        "enable_checkpointing": False,
        "max_epochs": 2,
        "limit_train_batches": 3,
        "log_every_n_steps": 2,
    } | settings
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=logger,
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
