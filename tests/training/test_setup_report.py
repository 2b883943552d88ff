"""What took effect is read back from what was built, and a knob that reached nothing is an error."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from tests.models.parts import objective, tiny_backbone
from tests.training.runs import digits, tiny_objective, trainer
from vitmae.errors import UserError
from vitmae.recipe import Recipe, build_optimizer, build_schedule, param_groups
from vitmae.training.averaging import WeightAverage
from vitmae.training.fit import NOT_FOR_USERS
from vitmae.training.setup_report import Effects, check_knobs, drop_path_rates, observed_knobs


def built(recipe, backbone=None, batch_size=64, **trainer):
    """An objective with its optimiser, and what of a Trainer the table reads."""
    model = objective("mae", backbone or tiny_backbone())
    model.optimizer = recipe
    peak = recipe.peak_lr(batch_size)
    groups = param_groups(model.named_parameters(), recipe, peak, model.layer_of, model.backbone.depth + 1)
    optimizer = build_optimizer(groups, recipe)
    schedule = build_schedule(optimizer, recipe, peak, 5, 100)
    model.run_length = lambda: (100, 10, batch_size)
    callbacks = [] if recipe.ema_decay is None else [WeightAverage(recipe.ema_decay)]
    settings = {
        "callbacks": callbacks,
        "lr_scheduler_configs": [SimpleNamespace(scheduler=schedule)],
        "estimated_stepping_batches": 100,
        "gradient_clip_val": None,
        "accumulate_grad_batches": 1,
        "world_size": 1,
        "precision": "32-true",
    }
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(optimizers=[optimizer], strategy=strategy, is_global_zero=True, **settings | trainer), model


KNOBS = [
    ("backbone.drop_path_rate", 0.2),
    ("backbone.drop_rate", 0.1),
    ("model.optimizer.base_lr", 3e-3),
    ("model.optimizer.weight_decay", 0.3),
    ("model.optimizer.layer_decay", 0.65),
    ("model.optimizer.betas", [0.9, 0.99]),
    ("model.optimizer.momentum", 0.9),
    ("trainer.gradient_clip_val", 1.0),
    ("trainer.accumulate_grad_batches", 4),
    ("compile", True),
    ("model.optimizer.min_lr", 1e-4),
    ("model.optimizer.ema_decay", 0.99),
]


def config_of(name, value):
    parts = name.split(".")
    for part in reversed(parts):
        value = {part: value}
    return value


@pytest.mark.parametrize(("name", "value"), KNOBS)
def test_a_knob_that_reached_nothing_is_an_error_that_names_it(name, value):
    observed = observed_knobs(*built(Recipe(base_lr=1e-3, betas=(0.9, 0.95))))
    with pytest.raises(UserError, match=name):
        check_knobs(config_of(name, value), observed)


@pytest.mark.parametrize(("name", "value"), KNOBS)
def test_a_knob_that_took_effect_is_observed_as_it_was_set(name, value):
    settings = {"betas": (0.9, 0.95)}
    backbone, trainer = {}, {}
    place, _, last = name.rpartition(".")
    if last == "momentum":
        settings = {"name": "sgd"}
    if place == "model.optimizer":
        settings[last] = tuple(value) if isinstance(value, list) else value
    elif place == "backbone":
        backbone[last] = value
    elif place == "trainer":
        trainer[last] = value
    pair = built(Recipe(**settings), tiny_backbone(**backbone), **trainer)
    if name == "compile":
        pair[1].compile_blocks()
    check_knobs(config_of(name, value), observed_knobs(*pair))


def test_the_drop_path_of_each_block_is_read_from_the_block():
    assert drop_path_rates(tiny_backbone(depth=3, drop_path_rate=0.3)) == pytest.approx([0.0, 0.15, 0.3])


def test_the_table_shows_the_run_and_every_group_and_is_kept(tmp_path, capsys):
    recipe = Recipe(base_lr=1e-3, layer_decay=0.5, betas=(0.9, 0.95))
    trainer, model = built(recipe, batch_size=512, accumulate_grad_batches=2)
    Effects({}, tmp_path / "effects.txt").on_train_start(trainer, model)
    shown, kept = capsys.readouterr().out, (tmp_path / "effects.txt").read_text()
    for words in (
        "512 = 256 per device x 1 device x 2 accumulated",
        "0.002 = 0.001 x 512 / 256",
        "18 of 24 patches",
        "5 steps from 0",
        "100 optimiser steps, 10 per epoch, 10 epochs",
        "layer 1, decayed",
        "0.0005",
        "32-true",
    ):
        assert words in kept, words
    assert "What took effect" in shown
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    listed = [int(line.split("│")[5].replace(",", "")) for line in kept.splitlines() if line.startswith("│ layer")]
    assert sum(listed) == total


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A run with everything that only a classifier and its images have, and its table."""
    folder = tmp_path_factory.mktemp("run")
    data = digits(rand_augment=5, random_erasing=0.5, repeats=2, hflip=True)
    model = tiny_objective("vit", data, mixup=0.8, cutmix=0.7, label_smoothing=0.1, freeze=1, head_init_std=0.02)
    run = trainer(folder, [Effects({}, folder / "effects.txt"), WeightAverage(0.9)], max_epochs=1)
    with warnings.catch_warnings():
        for message in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", f".*{message}")
        run.fit(model, datamodule=data)
    return run, model, (folder / "effects.txt").read_text()


def test_the_table_shows_what_is_done_to_images_labels_and_weights(fine_tuned):
    _, _, kept = fine_tuned
    for words in (
        "RandAugment 5, random erasing 0.5, 2 of each image",
        "none, mirrored or not",
        "mixup 0.8 or cutmix 0.7",
        "label smoothing",
        "embeddings and the first 1 of 1 blocks",
        "reads cls, weights of deviation 0.0",
        "decay 0.9",
    ):
        assert words in kept, words


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("data.rand_augment", 5, 9),
        ("data.random_erasing", 0.5, 0.25),
        ("data.repeats", 2, 3),
        ("model.mixup", 0.8, 1.0),
        ("model.cutmix", 0.7, 1.0),
    ],
)
def test_the_knobs_of_images_and_labels_are_read_back_too(fine_tuned, name, value, other):
    observed = observed_knobs(*fine_tuned[:2])
    check_knobs(config_of(name, value), observed)
    with pytest.raises(UserError, match=f"{name}={other} became {value}"):
        check_knobs(config_of(name, other), observed)


def test_a_parameter_that_the_optimiser_misses_is_a_fault(tmp_path):
    trainer, model = built(Recipe(betas=(0.9, 0.95)))
    trainer.optimizers[0].param_groups[0]["params"].pop()
    with pytest.raises(RuntimeError, match="exactly once"):
        Effects({}, tmp_path / "effects.txt").on_train_start(trainer, model)
