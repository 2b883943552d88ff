"""What took effect is read back from what was built, and a knob that reached nothing is an error."""

from types import SimpleNamespace

import pytest
import torch

from tests.models.parts import objective, tiny_backbone
from vitmae.errors import UserError
from vitmae.training.averaging import WeightAverage
from vitmae.training.effects import Effects, check_knobs, drop_path_rates, observed_knobs
from vitmae.training.optim import Recipe, build_optimizer, build_schedule, param_groups


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
    settings = {"callbacks": callbacks, "lr_scheduler_configs": [SimpleNamespace(scheduler=schedule)],
                "estimated_stepping_batches": 100, "gradient_clip_val": None, "accumulate_grad_batches": 1, "world_size": 1, "precision": "32-true"}
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(optimizers=[optimizer], strategy=strategy, is_global_zero=True, **settings | trainer), model


KNOBS = [
    ("backbone.drop_path_rate", 0.2), ("backbone.drop_rate", 0.1), ("model.optimizer.base_lr", 3e-3),
    ("model.optimizer.weight_decay", 0.3), ("model.optimizer.layer_decay", 0.65), ("model.optimizer.betas", [0.9, 0.99]),
    ("model.optimizer.momentum", 0.9), ("trainer.gradient_clip_val", 1.0), ("trainer.accumulate_grad_batches", 4),
    ("compile", True), ("model.optimizer.min_lr", 1e-4), ("model.optimizer.ema_decay", 0.99),
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
    for words in ("512 = 256 per device x 1 device x 2 accumulated", "0.002 = 0.001 x 512 / 256", "18 of 24 patches",
                  "5 steps from 0", "100 optimiser steps, 10 per epoch, 10 epochs", "layer 1, decayed", "0.0005", "32-true"):
        assert words in kept, words
    assert "What took effect" in shown
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    listed = [int(line.split("│")[5].replace(",", "")) for line in kept.splitlines() if line.startswith("│ layer")]
    assert sum(listed) == total


def test_a_parameter_that_the_optimiser_misses_is_a_fault(tmp_path):
    trainer, model = built(Recipe(betas=(0.9, 0.95)))
    trainer.optimizers[0].param_groups[0]["params"].pop()
    with pytest.raises(RuntimeError, match="exactly once"):
        Effects({}, tmp_path / "effects.txt").on_train_start(trainer, model)
