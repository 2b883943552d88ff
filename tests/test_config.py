import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from vitmae import config
from vitmae.config import build, check_settings, did_you_mean, resolved, setting_keys, takes
from vitmae.errors import UserError

HERE = __name__


@dataclass
class Recipe:
    base_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Model:
    def __init__(
        self,
        backbone: object,
        optimizer: Recipe,
        mask_ratio: float,
        depth: int | None = None,
        flip: bool = False,
        kind: Literal["random", "block"] = "random",
        size: int | Sequence[int] = 8,
        path: Path | None = None,
        stats: Any = None,
    ) -> None:
        self.backbone, self.optimizer, self.mask_ratio, self.depth, self.size = (
            backbone,
            optimizer,
            mask_ratio,
            depth,
            size,
        )


def anything(first: int, **rest: Any) -> dict[str, Any]:
    return {"first": first, **rest}


def model(**settings):
    return {
        "model": {"_target_": f"{HERE}.Model", "optimizer": {"_target_": f"{HERE}.Recipe"}, "mask_ratio": 0.5}
        | settings
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": "abc"}, "model.mask_ratio=abc: must be a number"),
        ({"mask_ratio": None}, "model.mask_ratio=null: must be a number"),
        ({"mask_ratio": True}, "model.mask_ratio=true: must be a number"),
        ({"depth": 2.5}, "model.depth=2.5: must be a whole number or null"),
        ({"flip": "maybe"}, "model.flip=maybe: must be true or false"),
        ({"kind": "diag"}, "model.kind=diag: must be random or block"),
        ({"size": [8, "x"]}, 'model.size=[8, "x"]: must be a whole number or a list, each a whole number'),
        ({"optimizer": "adamw"}, "model.optimizer=adamw: must be a mapping with _target_"),
        ({"mask_rato": 0.5}, "unknown setting model.mask_rato: did you mean model.mask_ratio?"),
        ({"zzz": 0.5}, "unknown setting model.zzz"),
        ({"optimizer": {"_target_": f"{HERE}.Recipe", "base_rl": 1}}, "did you mean model.optimizer.base_lr?"),
        (
            {"optimizer": {"_target_": f"{HERE}.Recipe", "betas": [0.9]}},
            "model.optimizer.betas=[0.9]: must be a list of 2, each a number",
        ),
        ({"stats": [{"_target_": f"{HERE}.Recipe", "base_lr": "x"}]}, "model.stats[0].base_lr=x: must be a number"),
        ({"_target_": "vitmae.nowhere.Model"}, "_target_=vitmae.nowhere.Model cannot be found"),
        ({"_target_": 3}, "_target_=3: must be the full name of a class"),
        (
            {"_target_": "vitmae.__version__"},
            "_target_=vitmae.__version__: must be the full name of a class or function, not a str",
        ),
        ({"weights": 3}, "model.weights=3: must be a text or null"),
        ({"weights": ""}, "model.weights=: must be a text that is not empty or null"),
    ],
)
def test_a_wrong_key_or_kind_of_value_is_one_line_that_names_it(settings, message):
    with pytest.raises(UserError) as error:
        check_settings(model(**settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_ratio": 1},
        {"depth": 3},
        {"size": [8, 16]},
        {"size": 8},
        {"path": "some/where"},
        {"stats": {"mean": [0.5]}},
        {"optimizer": {"_target_": f"{HERE}.Recipe", "betas": [0, 1]}},
        {"backbone": "of no type that a setting can have"},
    ],
)
def test_whole_numbers_pass_for_numbers_and_lists_for_tuples(settings):
    check_settings(model(**settings))


def test_what_only_the_run_can_know_is_not_missed():
    check_settings({"model": {"_target_": f"{HERE}.Model"}})


def test_a_target_with_open_arguments_takes_any_key_but_checks_those_it_names():
    check_settings({"node": {"_target_": f"{HERE}.anything", "first": 1, "other": "x"}})
    with pytest.raises(UserError, match=r"node\.first=x"):
        check_settings({"node": {"_target_": f"{HERE}.anything", "first": "x"}})


def test_a_node_is_built_with_the_nodes_inside_it_and_with_what_settings_cannot_hold():
    backbone = object()
    built = build(model(size=[8, 16])["model"], backbone=backbone)
    assert (built.backbone, built.mask_ratio, built.size) == (backbone, 0.5, [8, 16])
    assert built.optimizer == Recipe()


def test_a_partial_node_waits_for_its_other_arguments():
    waiting = build({"_target_": f"{HERE}.anything", "_partial_": True, "first": 1})
    assert waiting(second=2) == {"first": 1, "second": 2}


def test_an_argument_is_known_to_be_taken_or_not():
    assert takes(f"{HERE}.Model", "depth")
    assert not takes(f"{HERE}.Model", "num_classes")


def test_settings_are_resolved_to_plain_values():
    settings = resolved(OmegaConf.create({"a": {"b": [1, 2]}, "c": "${a.b}"}))
    assert settings == {"a": {"b": [1, 2]}, "c": [1, 2]}
    assert type(settings["c"]) is list


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {"b": "???"}}, "a.b must be given: a.b=…"),
        ({"a": "${nothing}"}, "a: Interpolation key 'nothing' not found"),
    ],
)
def test_a_value_that_is_missing_or_leads_nowhere_is_named(settings, message):
    with pytest.raises(UserError) as error:
        resolved(OmegaConf.create(settings))
    assert str(error.value) == message


def test_every_key_of_nested_settings_can_be_named():
    assert list(setting_keys({"a": {"b": {"c": 1}}, "d": 2})) == ["a", "a.b", "a.b.c", "d"]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.mask_rato", ": did you mean model.mask_ratio?"),
        ("modle.mask_ratio", ": did you mean model.mask_ratio?"),
        ("trainer.max_epoch", ": did you mean trainer.max_epochs?"),
        ("model.foo", ""),  # begins like all others, and is like none
        ("zzz", ""),
    ],
)
def test_the_nearest_key_is_near(key, near):
    assert (
        did_you_mean(key, ["model", "model.std", "model.mask_ratio", "trainer.max_epochs", "trainer.max_steps"]) == near
    )


def test_the_settings_are_found_inside_an_installed_package_and_beside_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "site" / "vitmae"
    for folder in (package / "conf", package.parent / "conf"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    monkeypatch.setattr(config, "__file__", os.fspath(package / "config.py"))
    assert config.config_dir() == package / "conf"
    (package / "conf" / "config.yaml").unlink()
    assert config.config_dir() == package.parent / "conf"
    (package.parent / "conf" / "config.yaml").unlink()
    with pytest.raises(UserError, match="install vitmae again"):
        config.config_dir()
