"""Short real runs that the tests of this folder share: digits, an objective of a few thousand parameters, a Trainer."""

from types import SimpleNamespace

import torch
from lightning import Trainer

from tests.models.parts import OBJECTIVES, objective, tiny_backbone
from vitmae.backbones.timm_vit import TimmViT
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.digits import Digits
from vitmae.recipe import Recipe, build_optimizer, build_schedule, param_groups
from vitmae.training.averaging import WeightAverage


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


def built(recipe, backbone=None, batch_size=64, **trainer):
    """An objective with its optimiser, and what of a Trainer the table reads."""
    model = objective("mae", backbone or tiny_backbone())
    model.optimizer = recipe
    peak = recipe.peak_lr(batch_size)
    groups = param_groups(model.named_parameters(), recipe, peak, model.layer_of, model.backbone.depth + 1)
    optimizer = build_optimizer(groups, recipe)
    schedule = build_schedule(optimizer, recipe, peak, recipe.warmup_steps(100, 10), 100)
    model.run_length = lambda: (100, 10, batch_size)
    callbacks = [] if recipe.ema_decay is None else [WeightAverage(recipe.ema_decay)]
    settings = {
        "callbacks": callbacks,
        "lr_scheduler_configs": [SimpleNamespace(scheduler=schedule)],
        "estimated_stepping_batches": 100,
        "global_step": 0,
        "gradient_clip_val": None,
        "accumulate_grad_batches": 1,
        "world_size": 1,
        "precision": "32-true",
    }
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(optimizers=[optimizer], strategy=strategy, is_global_zero=True, **settings | trainer), model
