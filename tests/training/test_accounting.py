"""Every setting is accounted for: one that has no effect, or became another value, is an error that names it."""

from functools import partial

import pytest
import torch
from lightning import Trainer

from tests.models.parts import tiny_backbone
from tests.training.runs import built
from vitmae.errors import UserError
from vitmae.recipe import Recipe
from vitmae.training.accounting import Leaf, _observe_trainer, check, drop_path_rates, leaves, observe

KNOBS = [
    ("backbone.drop_path_rate", 0.2),
    ("backbone.drop_rate", 0.1),
    ("model.optimizer.base_lr", 3e-3),
    ("model.optimizer.weight_decay", 0.3),
    ("model.optimizer.layer_decay", 0.65),
    ("model.optimizer.betas", [0.9, 0.99]),
    ("model.optimizer.momentum", 0.9),
    ("compile", True),
    ("model.optimizer.min_lr", 1e-5),
    ("model.optimizer.ema_decay", 0.99),
    ("model.optimizer.warmup_epochs", 0.7),
]


def check_observed(name, value, observed):
    check(Leaf(name, value, observed[name], None, None), is_given=False)


@pytest.mark.parametrize(("name", "value"), KNOBS)
def test_a_setting_that_was_not_built_in_is_an_error_that_names_it(name, value):
    observed = observe(*built(Recipe(base_lr=1e-3, betas=(0.9, 0.95))))
    with pytest.raises(UserError, match=name):
        check_observed(name, value, observed)


@pytest.mark.parametrize(("name", "value"), KNOBS)
def test_a_setting_that_was_built_in_is_observed_as_it_was_set(name, value):
    settings = {"betas": (0.9, 0.95)}
    backbone = {}
    place, _, last = name.rpartition(".")
    if last == "momentum":
        settings = {"name": "sgd"}
    if place == "model.optimizer":
        settings[last] = tuple(value) if isinstance(value, list) else value
    elif place == "backbone":
        backbone[last] = value
    pair = built(Recipe(**settings), tiny_backbone(**backbone))
    if name == "compile":
        pair[1].compile_blocks()
    check_observed(name, value, observe(*pair))


def test_the_drop_path_of_each_block_is_read_from_the_block():
    assert drop_path_rates(tiny_backbone(depth=3, drop_path_rate=0.3)) == pytest.approx([0.0, 0.15, 0.3])


class Part:
    """Has some settings as attributes, and says what became of others."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def took_effect(self):
        return {"target": "pixels"}

    def without_effect(self):
        return {"idle": "as things are"}

    def freeze(self):
        """A method is no setting."""


def told(settings, part, given=(), idle=()):
    """What is said of the first setting that is refused; None where all are accounted for."""
    try:
        for leaf in leaves(settings, part, dict(idle)):
            check(leaf, leaf.name in given)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"rate": 0.5}, None),
        ({"rate": 0.4}, "model.rate=0.4 became 0.5: set it to 0.5"),
        ({"size": 8}, None),
        ({"size": [8, 8]}, None),
        ({"size": [8, 9]}, "model.size=[8, 9] became (8, 8)"),
        ({"flag": True}, None),
        ({"flag": 1}, "model.flag=1 became True"),
        ({"rate": None}, None),
        ({"rate": "auto"}, None),
        ({"absent": None}, "model.absent has no effect: Part has no attribute absent: store it, or return it"),
        ({"freeze": 2}, "model.freeze has no effect"),
        ({"target": "pixels"}, None),
        ({"target": "colour"}, "model.target=colour became pixels"),
        ({"optimizer": {"_target_": "x", "lr": 1}}, None),
        ({"optimizer": {"_target_": "x", "lr": 2}}, "model.optimizer.lr=2 became 1"),
        ({"optimizer": {"_target_": "x", "betas": 2}}, "model.optimizer.betas has no effect"),
        ({"stats": {"mean": [0.5]}}, None),
        ({"stats": {"mean": [0.4]}}, "model.stats.mean=[0.4] became (0.5,)"),
        ({"later": {"_partial_": True, "lr": 2}}, None),
        ({"later": {"_partial_": True, "lr": 3}}, "model.later.lr=3 became 2"),
        ({"weights": "a/file"}, None),
        ({"temperature": 0.07}, None),  # the start of a learned parameter has moved by the time a run is resumed
        ({"parts": [{"_target_": "x", "p": 0.5}, {"_target_": "x", "p": 1}]}, None),
        ({"parts": [{"_target_": "x", "p": 0.4}, {"_target_": "x", "p": 1}]}, "model.parts[0].p=0.4 became 0.5"),
    ],
)
def test_a_setting_is_accounted_for_by_the_part_that_was_built_from_its_node(setting, said):
    part = Part(
        temperature=torch.nn.Parameter(torch.tensor(0.08)),
        parts=[Part(p=0.5), Part(p=1)],
        rate=0.5,
        size=(8, 8),
        flag=True,
        optimizer=Part(lr=1),
        stats={"mean": (0.5,)},
        later=partial(Part, lr=2),
    )
    answer = told({"model": {"_target_": "x", **setting}}, {"model": part})
    assert answer is None if said is None else answer.startswith(said)


def test_a_setting_without_effect_is_an_error_where_it_was_given_and_silent_where_not():
    settings, parts = {"model": {"idle": 3}}, {"model": Part()}
    assert told(settings, parts) is None
    assert told(settings, parts, given=["model.idle"]) == "model.idle=3 has no effect: as things are"


def test_a_node_of_which_another_part_has_no_use_is_without_effect_as_a_whole():
    settings, parts, idle = {"probe": {"k": 20}}, {"probe": Part(k=20)}, {"probe": "no labels"}
    assert told(settings, parts, given=["probe.k"]) is None
    assert told(settings, parts, idle=idle.items()) is None
    assert told(settings, parts, given=["probe.k"], idle=idle.items()) == "probe.k=20 has no effect: no labels"


TRAINER = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}


@pytest.mark.parametrize(
    "setting",
    [
        {"precision": "bf16-mixed"},
        {"precision": 32},
        {"devices": 2, "strategy": "ddp"},
        {"devices": 2, "strategy": "ddp_find_unused_parameters_true"},
        {"devices": "2"},
        {"max_steps": 7, "max_epochs": 3},
        {"num_sanity_val_steps": -1},
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm"},
        {"accumulate_grad_batches": 4},
        {"val_check_interval": 0.25},
        {"profiler": "simple"},
        {"max_time": "00:01:00:00"},
        {"benchmark": True},
    ],
)
def test_a_setting_of_the_trainer_is_read_back_from_the_trainer(setting, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    given = TRAINER | setting
    trainer = Trainer(**given, enable_progress_bar=False, enable_model_summary=False)
    settings = {key: value for key, value in given.items() if key not in ("logger", "enable_checkpointing")}
    observed = _observe_trainer(trainer, settings)
    for leaf in leaves({"trainer": settings}, {"trainer": trainer}, {}):
        check(leaf._replace(found=observed.get(leaf.name, leaf.found)), is_given=False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"precision": "32-true"}, "trainer.precision=32-true became bf16-mixed"),
        ({"devices": 2}, "trainer.devices=2 became 1"),
        ({"accelerator": "gpu"}, "trainer.accelerator=gpu became cpu"),
        ({"strategy": "ddp"}, "trainer.strategy=ddp became SingleDeviceStrategy"),
        ({"deterministic": True}, "trainer.deterministic=True became False"),
        ({"max_epochs": 5}, "trainer.max_epochs=5 became 3"),
        ({"callbacks": []}, "trainer.callbacks has no effect: the run sets it itself"),
    ],
)
def test_a_setting_that_the_trainer_does_not_have_is_an_error(setting, said):
    trainer = Trainer(
        **TRAINER, precision="bf16-mixed", max_epochs=3, enable_progress_bar=False, enable_model_summary=False
    )
    with pytest.raises(UserError) as error:
        observed = _observe_trainer(trainer, setting)
        for leaf in leaves({"trainer": setting}, {"trainer": trainer}, {}):
            check(leaf._replace(found=observed.get(leaf.name, leaf.found)), is_given=False)
    assert str(error.value).startswith(said)
