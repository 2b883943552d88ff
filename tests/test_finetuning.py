"""Fine-tuning as a user starts it: the papers' recipes, weights that fit and weights that do not, frozen parts, an average."""

import os
import signal
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from tests.command_line import run_command
from tests.test_train_command import same
from tests.training.standin import QUIET
from tests.weights.parts import build, save_checkpoint, settings
from vitmae.config import build as build_node
from vitmae.config import config_dir, resolved
from vitmae.recipe import param_groups
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.train import main
from vitmae.weights.read import read_weights
from vitmae.weights.saved import read_saved, rebuild

pytestmark = QUIET

DIGITS = {"img_size": [8, 8], "in_chans": 1, "patch_size": 2}
TINY = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "logger=none",
    "backbone.embed_dim=32",
    "backbone.depth=2",
    "backbone.num_heads=2",
    "trainer.num_sanity_val_steps=0",
    "probe.images=50",
    "panel.images=1",
    "data.batch_size=64",
    "trainer.accumulate_grad_batches=1",
]
SHORT = ["trainer.max_steps=2", "model.optimizer.warmup_epochs=null", "trainer.limit_val_batches=1"]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(main, *TINY, *arguments, capsys=capsys)


def compose(*overrides):
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("config", overrides=["name=recipe", "choices=null", *overrides])


def pretrained(kind="mae", **backbone):
    """A checkpoint for the digits, or for other images, and where it lies."""
    backbone = DIGITS | backbone
    made = build(kind, backbone)
    return made, save_checkpoint(Path(f"{kind}.ckpt"), made, settings(kind, backbone))


def run_named(name):
    (path,) = Path("runs").glob(f"2*/*-{name}")
    return path


# -- the recipes -------------------------------------------------------------------------------------------------------


def test_the_maes_fine_tuning_is_its_papers_table_9_with_the_values_of_its_published_code():
    config = compose("experiment=finetune_mae", "data=imagenet", "backbone=vit_base")
    model, recipe, data = config.model, config.model.optimizer, config.data
    assert (recipe.name, recipe.base_lr, recipe.weight_decay, recipe.betas) == ("adamw", 5e-4, 0.05, [0.9, 0.999])
    assert (recipe.layer_decay, recipe.min_lr, recipe.warmup_epochs, config.trainer.max_epochs) == (0.65, 1e-6, 5, 100)
    assert data.batch_size * config.trainer.accumulate_grad_batches == 1024
    assert config.backbone.drop_path_rate == 0.1
    assert (model.mixup, model.cutmix, model.label_smoothing) == (0.8, 1.0, 0.1)
    assert (data.rand_augment, data.random_erasing, data.repeats) == (9, 0.25, 1)
    assert (data.crop, data.crop_scale, data.hflip, data.img_size) == ("random_resized", [0.08, 1.0], True, 224)
    assert (model.pool, model.head_init_std, model.freeze) == ("avg", 2e-5, 0)
    assert (recipe.ema_decay, config.trainer.gradient_clip_val) == (None, None)


def test_the_rates_of_vit_b_under_it_are_the_papers_formula_in_depth_plus_one_steps():
    config = resolved(compose("experiment=finetune_mae", "data=imagenet", "backbone=vit_base"))
    with torch.device("meta"):
        model = build_node(
            config["model"] | {"num_classes": 1000},
            backbone=build_node(config["backbone"]),
            mean=[0.5] * 3,
            std=[0.5] * 3,
        )
    peak = model.optimizer.peak_lr(1024)
    groups = param_groups(model.named_parameters(), model.optimizer, peak, model.layer_of, 13)
    rates = {
        (number, name): 2e-3 * 0.65 ** (13 - number) for number in range(14) for name in ("decayed", "not decayed")
    }
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {f"layer {number}, {name}": rate for (number, name), rate in rates.items()}
    )
    layers = {id(parameter): group["name"].split(",")[0] for group in groups for parameter in group["params"]}
    for name, layer in {
        "backbone.vit.patch_embed.proj.weight": 0,
        "backbone.vit.pos_embed": 0,
        "backbone.vit.cls_token": 0,
        "backbone.vit.blocks.0.norm1.bias": 1,
        "backbone.vit.blocks.11.mlp.fc2.weight": 12,
        "fc_norm.weight": 13,
        "head.weight": 13,
        "head.bias": 13,
    }.items():
        assert layers[id(model.get_parameter(name))] == f"layer {layer}", name


def test_the_vits_fine_tuning_is_its_papers_table_4():
    config = compose("experiment=finetune_vit", "data=imagenet", "backbone=vit_base")
    model, recipe, data = config.model, config.model.optimizer, config.data
    assert (recipe.name, recipe.momentum, recipe.betas, recipe.weight_decay) == ("sgd", 0.9, None, 0.0)
    assert data.batch_size * config.trainer.accumulate_grad_batches == 512
    assert recipe.base_lr * 512 / 256 in (0.003, 0.01, 0.03, 0.06)
    assert recipe.min_lr == 0.0  # cosine to nothing
    assert config.trainer.gradient_clip_val == 1.0
    assert (data.img_size, config.backbone.img_size) == (384, 384)
    assert (model.pool, model.head_init_std) == ("cls", 0.0)
    assert config.trainer.max_epochs * 1_281_167 / 512 == pytest.approx(20_000, rel=0.01)
    assert recipe.warmup_epochs * 1_281_167 / 512 == pytest.approx(500, rel=0.01)


def test_the_vits_training_from_scratch_is_its_papers_table_3():
    config = compose("experiment=vit_imagenet")
    model, recipe, data, trainer = config.model, config.model.optimizer, config.data, config.trainer
    assert (data.img_size, config.backbone.name, trainer.max_epochs) == (224, "vit_base_patch16_224", 300)
    assert data.batch_size * 8 == 4096
    assert recipe.base_lr * 4096 / 256 == pytest.approx(3e-3)
    assert (recipe.name, recipe.weight_decay, recipe.betas) == ("adamw", 0.3, [0.9, 0.999])
    assert recipe.warmup_epochs * (1_281_167 // 4096) == pytest.approx(10_000, rel=0.005)
    assert (config.backbone.drop_rate, trainer.gradient_clip_val, recipe.min_lr) == (0.1, 1.0, 0.0)
    assert (model.pool, model.init, model.head_init_std, model.fixed_positions) == ("cls", "jax", 0.0, False)
    assert (model.mixup, model.cutmix, model.label_smoothing, data.rand_augment) == (0.0, 0.0, 0.0, None)


def test_the_maes_baseline_from_scratch_is_its_papers_table_11():
    config = compose("experiment=scratch_imagenet")
    model, recipe, data, trainer = config.model, config.model.optimizer, config.data, config.trainer
    assert (data.img_size, config.backbone.name, trainer.max_epochs) == (224, "vit_base_patch16_224", 300)
    assert data.batch_size * 8 == 4096
    assert (recipe.name, recipe.base_lr, recipe.weight_decay, recipe.betas) == ("adamw", 1e-4, 0.3, [0.9, 0.95])
    assert (recipe.warmup_epochs, recipe.ema_decay, recipe.layer_decay) == (20, 0.9999, 1.0)
    assert (model.mixup, model.cutmix, model.label_smoothing, data.rand_augment) == (0.8, 1.0, 0.1, 9)
    assert (config.backbone.drop_path_rate, config.backbone.drop_rate, data.random_erasing) == (0.1, 0.0, 0.0)


def test_the_recipe_for_small_sets_has_what_small_sets_need():
    config = compose("experiment=small_vit")
    model, recipe, data = config.model, config.model.optimizer, config.data
    backbone = config.backbone
    assert (backbone.embed_dim or 192, backbone.depth, backbone.num_heads, backbone.mlp_ratio, backbone.patch_size) == (
        192,
        9,
        12,
        2,
        4,
    )
    assert (data.rand_augment, data.random_erasing, data.repeats, data.crop, data.hflip) == (9, 0.25, 3, "pad", True)
    assert (model.mixup, model.cutmix, model.label_smoothing, backbone.drop_path_rate) == (1.0, 1.0, 0.1, 0.1)
    assert recipe.base_lr * data.batch_size / 256 == pytest.approx(1e-3, rel=0.01)
    assert (recipe.weight_decay, recipe.warmup_epochs / config.trainer.max_epochs) == (0.05, 0.1)
    assert config.trainer.max_epochs / data.repeats == 100  # as often as there, an image is seen in one of its versions


@pytest.mark.parametrize(
    "experiment", ["finetune_mae", "finetune_vit", "small_vit", "vit_imagenet", "scratch_imagenet"]
)
def test_each_recipe_trains_and_all_its_settings_take_effect(train, experiment):
    small = {
        "small_vit": [
            "data=digits",
            "backbone=vit_pico",
            "data.batch_size=66",
            "backbone.mlp_ratio=2",
            "backbone.depth=2",
        ],
        "vit_imagenet": ["data=digits", "backbone=vit_pico", "data.crop=random_resized", "data.batch_size=64"],
        "scratch_imagenet": ["data=digits", "backbone=vit_pico", "data.crop=random_resized", "data.batch_size=64"],
    }
    done = train(f"experiment={experiment}", "data.img_size=8", *small.get(experiment, []), *SHORT)
    assert done.code == 0, done.err
    assert "What took effect" in done.out


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masked_patch", "vit"])  # that of a masked autoencoder is in the tests below
def test_an_encoder_of_any_objective_can_be_fine_tuned(train, kind):
    made, path = pretrained(kind)
    done = train("model=vit", "model.optimizer.base_lr=1e-12", f"backbone.weights={path}", "name=run", *SHORT)
    assert done.code == 0, done.err
    assert "encoder    0.03 M values: 100.0% loaded" in done.out
    state = read_checkpoint(run_named("run") / "checkpoints" / "last.ckpt")["state_dict"]
    for name, tensor in made.state_dict().items():
        if name.startswith("backbone."):
            assert torch.allclose(state[name], tensor, atol=1e-6), name


def test_a_larger_image_gets_positions_interpolated_in_two_dimensions_and_is_told_so(train):
    made, path = pretrained("masked_patch")
    done = train(
        "model=vit",
        "model.optimizer.base_lr=1e-12",
        "data.img_size=[12,16]",
        f"backbone.weights={path}",
        "name=run",
        *SHORT,
    )
    assert done.code == 0, done.err
    assert "resampled  backbone.vit.pos_embed (4x4 -> 6x8)" in done.out
    positions = read_checkpoint(run_named("run") / "checkpoints" / "last.ckpt")["state_dict"]["backbone.vit.pos_embed"]
    old = made.backbone.vit.pos_embed.detach()
    grid = old[:, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (6, 8), mode="bicubic", antialias=True, align_corners=False)
    assert torch.allclose(positions[:, 1:], wanted.flatten(2).mT, atol=1e-5)
    assert torch.allclose(positions[:, :1], old[:, :1], atol=1e-6)


def test_another_number_of_channels_gets_a_resampled_projection_and_is_told_so(train):
    made, path = pretrained("mae", in_chans=3)
    done = train("model=vit", "model.optimizer.base_lr=1e-12", f"backbone.weights={path}", "name=run", *SHORT)
    assert done.code == 0, done.err
    assert "resampled  backbone.vit.patch_embed.proj.weight (32x3x2x2 -> 32x1x2x2)" in done.out
    state = read_checkpoint(run_named("run") / "checkpoints" / "last.ckpt")["state_dict"]
    summed = made.backbone.vit.patch_embed.proj.weight.sum(1, keepdim=True)  # what it answers three equal channels
    assert torch.allclose(state["backbone.vit.patch_embed.proj.weight"], summed, atol=1e-5)


@pytest.mark.parametrize("size", [{"embed_dim": 16}, {"depth": 1}])
def test_an_encoder_of_another_size_is_refused_in_one_line_that_says_what_to_change(train, size):
    _, path = pretrained("mae", **size)
    done = train("model=vit", f"backbone.weights={path}", *SHORT)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "of the encoder match" in done.err
    assert "choose the backbone that the weights were made for" in done.err


# -- frozen parts and the average --------------------------------------------------------------------------------------


def test_frozen_blocks_end_as_they_began_and_the_table_says_so(train):
    made, path = pretrained("mae")
    common = ["model=vit", "model.optimizer.base_lr=1e-2", f"backbone.weights={path}", *SHORT]
    for frozen, words in (("1", "embeddings and the first 1 of 2 blocks"), ("all", "the whole backbone")):
        done = train(*common, f"model.freeze={frozen}", f"name=frozen{frozen}")
        assert done.code == 0, done.err
        assert words in done.out
        state = read_checkpoint(run_named(f"frozen{frozen}") / "checkpoints" / "last.ckpt")["state_dict"]
        for name, tensor in made.backbone.state_dict().items():
            is_frozen = frozen == "all" or made.backbone.layer_of(name) <= 1
            assert torch.equal(state[f"backbone.{name}"], tensor) is is_frozen, name
        assert state["head.weight"].any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.freeze=7", "model.freeze=7: the backbone has 2 blocks: choose at most 2, or all"),
        ("model.freeze=some", "model.freeze=some: must be a whole number or all"),
        ("model.optimizer.ema_decay=1", "model.optimizer.ema_decay=1: must be > 0 and < 1 or null"),
    ],
)
def test_what_cannot_be_is_one_line(train, setting, message):
    done = train("model=vit", setting)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_setting_that_a_frozen_backbone_leaves_without_effect_is_refused(train):
    done = train("model=vit", "model.freeze=all", "backbone.drop_path_rate=0.1", *SHORT)
    assert done.code == 2
    assert "backbone.drop_path_rate=0.1 became 0.0" in done.err


def test_a_fine_tuning_with_all_its_knobs_interrupted_in_mid_epoch_ends_bit_for_bit_as_if_it_had_not_been(
    train, monkeypatch
):
    from vitmae.training.step_log import StepLog

    _, path = pretrained("mae")
    recipe = [
        "experiment=finetune_mae",
        f"backbone.weights={path}",
        "data.batch_size=48",
        "data.repeats=2",
        "data.num_workers=0",
        "model.freeze=1",
        "model.optimizer.ema_decay=0.9",
        "backbone.drop_rate=0.1",
        "model.optimizer.warmup_epochs=0.2",
        "trainer.max_epochs=1",
        "trainer.accumulate_grad_batches=2",
    ]
    whole = train(*recipe, "name=whole")
    assert whole.code == 0, whole.err
    log = StepLog.on_train_batch_end

    def terminate(callback, trainer, *arguments):
        log(callback, trainer, *arguments)
        if trainer.global_step == 5 and not trainer.received_sigterm:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StepLog, "on_train_batch_end", terminate)
    assert train(*recipe, "name=killed").code == 75
    monkeypatch.setattr(StepLog, "on_train_batch_end", log)
    run = run_named("killed")
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5
    assert main([f"ckpt={run}"]) == 0
    for kind in ("last", "best"):
        ours, theirs = (
            read_checkpoint(run_named(name) / "checkpoints" / f"{kind}.ckpt") for name in ("killed", "whole")
        )
        assert ours["global_step"] == theirs["global_step"]
        for part in (
            "state_dict",
            "current_model_state",
            "averaging_state",
            "optimizer_states",
            "lr_schedulers",
            "loops",
        ):
            assert same(ours[part], theirs[part]), part


def test_what_is_loaded_of_a_run_with_an_average_is_the_average_and_the_load_says_so(train):
    assert (
        train("model=vit", "model.optimizer.ema_decay=0.99", "name=run", "model.optimizer.base_lr=1e-2", *SHORT).code
        == 0
    )
    run = run_named("run")
    content = read_checkpoint(run / "checkpoints" / "best.ckpt")
    weight = "backbone.vit.blocks.0.mlp.fc1.weight"
    assert not torch.equal(content["state_dict"][weight], content["current_model_state"][weight])
    assert torch.equal(rebuild(read_saved(run)).state_dict()[weight], content["state_dict"][weight])
    assert torch.equal(read_weights(str(run)).state[weight], content["state_dict"][weight])
    assert "(EMA, 0.99)" in train("model=vit", f"backbone.weights={run}", *SHORT).out
    kept = (run / "effects.txt").read_text()
    assert "decay 0.99" in kept
    assert OmegaConf.load(run / "config.yaml").model.optimizer.ema_decay == 0.99
