"""A file builds listed classes and nothing else; what a user trusts is the user's own."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vitmae.classes import LISTED, check_classes
from vitmae.config import config_dir, locate
from vitmae.errors import UserError
from vitmae.runs.resume import find_resumption

FILE = Path("run/config.yaml")
RECIPE, MAE, SHAPES = "vitmae.recipe.Recipe", "vitmae.models.mae.MAE", "vitmae.data.sources.shapes.Shapes"


def good():
    return {
        "model": {"_target_": MAE, "mask_ratio": 0.75, "optimizer": {"_target_": RECIPE, "betas": [0.9, 0.95]}},
        "data": {"_target_": "vitmae.data.datamodule.ImageData", "source": {"_target_": SHAPES}},
        "logger": {"mine": {"_target_": "vitmae.training.loggers.MetricsFile"}},
        "choices": {"logger": ["csv"]},
    }


def with_node(place, node):
    settings = good()
    *parents, last = place.split(".")
    inner = settings
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = node
    return settings


def test_what_a_run_saves_is_allowed():
    check_classes(good(), FILE)


def test_every_listed_class_exists_and_every_class_of_the_config_groups_is_listed():
    listed = {name for names in LISTED.values() for name in names}
    assert all(callable(locate(name)) for name in listed)
    for group in ("model", "backbone", "data", "trainer", "logger"):
        for file in (config_dir() / group).glob("*.yaml"):
            node = OmegaConf.to_container(OmegaConf.load(file))
            nodes = [node] if "_target_" in node else [value for value in node.values() if isinstance(value, dict)]
            for target in targets(nodes):
                assert target in listed, (file, target)
    whole = OmegaConf.to_container(OmegaConf.load(config_dir() / "config.yaml"))
    assert whole["probe"]["_target_"] in LISTED["probe"]
    assert whole["panel"]["_target_"] in LISTED["panel"]


def targets(node):
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            yield from targets(child)
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]


@pytest.mark.parametrize(
    ("place", "node"),
    [
        ("model", {"_target_": "os.system", "command": "true"}),
        ("model", {"_target_": "vitmae.config.build", "node": {}}),
        ("model", {"_target_": "vitmae.composition.compose", "overrides": []}),
        ("data.source", {"_target_": "vitmae.weights.read.local", "source": "x"}),
        ("backbone", {"_target_": MAE}),  # listed, and for another place
        ("model.mask_ratio", {"_target_": RECIPE}),  # no place for a node
        ("model.optimizer.betas", [{"_target_": RECIPE}]),
        ("model.optimizer.betas", [[{"_target_": "os.system"}]]),
        ("logger.a.b", {"_target_": "vitmae.training.loggers.MetricsFile"}),
        ("logger", {"_target_": "vitmae.training.loggers.MetricsFile"}),
        ("elsewhere", {"deep": {"_target_": "os.system"}}),
        ("_target_", MAE),
    ],
)
def test_a_class_in_a_place_that_is_not_its_own_is_refused_in_one_line_that_says_how_to_trust_it(place, node):
    with pytest.raises(UserError, match=r"run/config.yaml: .* builds .*trust=\[") as error:
        check_classes(with_node(place, node), FILE)
    assert "\n" not in str(error.value)


def test_a_class_name_that_is_no_text_is_refused():
    with pytest.raises(UserError, match=r"model\.optimizer\._target_ is a list"):
        check_classes(with_node("model.optimizer", {"_target_": [RECIPE]}), FILE)


@pytest.mark.parametrize("value", ["${evil}", "${oc.create:{_target_:os.system}}", "a ${oc.env:HOME}"])
def test_what_could_become_a_node_after_the_check_is_refused(value):
    with pytest.raises(UserError, match="not a plain value"):
        check_classes(with_node("model.optimizer", value), FILE)


def test_a_call_that_waits_for_arguments_is_refused():
    with pytest.raises(UserError, match=r"model\.optimizer\._partial_"):
        check_classes(with_node("model.optimizer", {"_target_": RECIPE, "_partial_": True}), FILE)


def test_a_class_that_the_user_trusts_is_allowed_and_no_other_of_its_package():
    settings = with_node("model", {"_target_": "my_package.MyObjective"})
    check_classes(settings, FILE, trust=["my_package.MyObjective"])
    with pytest.raises(UserError, match=r"my_package\.MyObjective"):
        check_classes(settings, FILE, trust=["my_package", "my_package.Other"])


def test_a_run_is_not_resumed_with_settings_that_build_what_a_file_may_not(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    own = with_node("trainer", {"_target_": "lightning.Trainer", "callbacks": [{"_target_": "my.Callback"}]})
    own |= {"trust": ["my.Callback"]}  # a file cannot trust itself
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(own))
    with pytest.raises(UserError, match=r"config.yaml: trainer.callbacks.0 builds my.Callback.*trust=\[my.Callback\]"):
        find_resumption(str(tmp_path), Path("runs"), [])
    found = find_resumption(str(tmp_path), Path("runs"), [], trust=["my.Callback"])
    assert found.settings["trust"] == []
