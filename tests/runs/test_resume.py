import copy
import json
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from vitmae.composition import compose
from vitmae.config import setting_keys
from vitmae.errors import UserError
from vitmae.runs.resume import MAY_CHANGE, changed_settings, find_resumption

CHOICES = {"model": "mae", "data": "digits", "logger": ["wandb", "csv"], "experiment": None}


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def make(runs, path, age, kinds=("last", "best"), **facts):
    """A run directory whose checkpoints were written `age` seconds ago."""
    directory = runs / path
    (directory / "checkpoints").mkdir(parents=True)
    settings = {"name": "mae-digits", "choices": CHOICES | facts.pop("choices", {}), "seed": 3} | facts
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    (directory / "summary.json").write_text(json.dumps({"choices": settings["choices"], "name": settings["name"]}))
    for kind in kinds:
        checkpoint = directory / "checkpoints" / f"{kind}.ckpt"
        checkpoint.touch()
        os.utime(checkpoint, (1e9 - age, 1e9 - age))
    return directory


def test_last_and_best_mean_the_run_that_was_saved_last_also_in_a_sweep(runs):
    make(runs, "2026-01-02/a", age=20)
    newest = make(runs, "2026-01-01/b-sweep/0-x", age=10)
    make(runs, "2026-01-03/never-saved", age=0, kinds=())
    for kind in ("last", "best"):
        found = find_resumption(kind, runs, [])
        assert (found.checkpoint, found.directory) == (newest / "checkpoints" / f"{kind}.ckpt", newest)


def test_a_name_or_a_group_chooses_among_the_runs(runs):
    make(runs, "d/a", age=10)
    vit = make(runs, "d/b", age=20, choices={"model": "vit"})
    mine = make(runs, "d/c", age=30, name="mine")
    assert find_resumption("last", runs, ["model=vit", "data=digits"]).directory == vit
    assert find_resumption("last", runs, ["name=mine"]).directory == mine
    with pytest.raises(UserError, match=r"no run below .* with model=masked_patch has a last\.ckpt"):
        find_resumption("last", runs, ["model=masked_patch"])


def test_no_run_at_all_is_one_line(runs):
    with pytest.raises(UserError, match=r"ckpt=best: no run below .*runs has a best\.ckpt"):
        find_resumption("best", runs, [])


def test_a_path_may_be_a_run_or_a_checkpoint(runs):
    run = make(runs, "d/a", age=0)
    assert find_resumption(str(run), runs, []).checkpoint == run / "checkpoints" / "last.ckpt"
    assert find_resumption(str(run / "checkpoints" / "best.ckpt"), runs, []).checkpoint.name == "best.ckpt"
    for nothing in (runs / "nowhere", runs):
        with pytest.raises(UserError, match=f"ckpt={nothing}: there is no"):
            find_resumption(str(nothing), runs, [])


def test_the_settings_are_those_that_were_saved_and_single_ones_go_on_top(runs):
    run = make(runs, "d/a", age=0)
    found = find_resumption(str(run), runs, ["trainer.max_epochs=7", "seed=4", "+model.new=1", "~model.old"])
    assert found.settings == {"name": "mae-digits", "choices": CHOICES, "seed": 3, "on_nonfinite": "stop", "trust": []}
    assert found.overrides == ["trainer.max_epochs=7", "seed=4", "+model.new=1", "~model.old"]


def test_a_group_that_agrees_is_left_out_and_one_that_does_not_is_refused(runs):
    run = make(runs, "d/a", age=0)
    agreeing = ["model=mae", "logger=[wandb, csv]", "experiment=null", "seed=4"]
    assert find_resumption(str(run), runs, agreeing).overrides == ["seed=4"]
    with pytest.raises(UserError, match="model=vit: the run has model=mae, which stays"):
        find_resumption(str(run), runs, ["model=vit"])
    with pytest.raises(UserError, match=r"logger=csv: the run has logger=\[wandb,csv\]"):
        find_resumption(str(run), runs, ["logger=csv"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("defaults", ["_self_", "../../evil"]),
        ("hydra", {"run": {"dir": "/elsewhere"}}),
        ("extra", {"_target_": "os.system", "command": "true"}),
        ("extra", 1),
    ],
)
def test_a_file_with_more_than_the_settings_of_a_run_is_refused_before_hydra_can_obey_it(runs, tmp_path, key, value):
    run = make(runs, "2026-01-02/a", age=20, **{key: value})
    with pytest.raises(UserError, match=rf"config\.yaml: {key} is no setting of a run"):
        find_resumption(str(run), runs, [])
    lone = tmp_path / "lone" / "x.ckpt"
    lone.parent.mkdir()
    settings = {"choices": CHOICES, "seed": 3, key: value}
    torch.save({"vitmae_format": 1, "vitmae_config": settings, "state_dict": {}}, lone)
    with pytest.raises(UserError, match=rf"x\.ckpt: {key} is no setting of a run"):
        find_resumption(str(lone), runs, [])


def test_a_checkpoint_without_its_run_brings_its_settings_and_starts_a_directory_of_its_own(tmp_path):
    path = tmp_path / "copied.ckpt"
    torch.save({"vitmae_format": 1, "vitmae_config": {"seed": 5, "choices": CHOICES}}, path)
    found = find_resumption(str(path), tmp_path, ["model=mae"])
    assert (found.checkpoint, found.directory, found.overrides) == (path, None, [])
    assert found.settings["seed"] == 5


SAVED = {
    "name": "mae-digits",
    "seed": 3,
    "choices": CHOICES,
    "weights_min_match": 0.95,
    "trainer": {"max_epochs": 5, "precision": "32-true", "gradient_clip_val": None},
    "data": {"batch_size": 64, "seed": 3, "num_workers": 2, "val_fraction": 0.1},
    "backbone": {"depth": 3, "weights": None},
    "model": {
        "mask_ratio": 0.75,
        "freeze": "none",
        "optimizer": {"base_lr": 1e-3, "betas": [0.9, 0.95], "ema_decay": None},
    },
    "probe": {"k": 20},
}


def changed(**settings):
    """What `changed_settings` says about one setting, as `model__optimizer__base_lr=1`."""
    ((name, value),) = settings.items()
    *places, last = name.split("__")
    now = copy.deepcopy(SAVED)
    node = now
    for place in places:
        node = node[place]
    node[last] = value
    return changed_settings(SAVED, now, Path("run/checkpoints/last.ckpt"))


@pytest.mark.parametrize(
    ("setting", "name", "said"),
    [
        ({"model__optimizer__base_lr": 1e-4}, "model.optimizer.base_lr", "0.001 -> 0.0001"),
        ({"model__optimizer__betas": [0.9, 0.999]}, "model.optimizer.betas", "[0.9,0.95] -> [0.9,0.999]"),
        ({"model__optimizer__min_lr": 1e-6}, "model.optimizer.min_lr", "not set -> 1e-06"),
        ({"trainer__max_epochs": 7}, "trainer.max_epochs", "5 -> 7"),
        ({"trainer__gradient_clip_val": 1.0}, "trainer.gradient_clip_val", "null -> 1.0"),
        ({"trainer__precision": "bf16-mixed"}, "trainer.precision", "32-true -> bf16-mixed"),
        ({"data__batch_size": 128}, "data.batch_size", "64 -> 128"),
        ({"data__num_workers": 0}, "data.num_workers", "2 -> 0"),
        ({"probe__k": 5}, "probe.k", "20 -> 5"),
        ({"on_nonfinite": "skip"}, "on_nonfinite", "not set -> skip"),
    ],
)
def test_what_may_change_changes_and_is_said_from_old_to_new(setting, name, said):
    assert changed(**setting) == {name: said}


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"model__mask_ratio": 0.5}, "model.mask_ratio=0.5: the run has 0.75"),
        ({"model__freeze": "backbone"}, "model.freeze=backbone: the run has none"),
        ({"backbone__depth": 4}, "backbone.depth=4: the run has 3"),
        ({"data__seed": 4}, "data.seed=4: the run has 3"),
        ({"data__val_fraction": 0.2}, "data.val_fraction=0.2: the run has 0.1"),
        ({"seed": 4}, "seed=4: the run has 3"),
        ({"model__optimizer__name": "sgd"}, "model.optimizer.name=sgd: the run has not set"),
        ({"model__optimizer__layer_decay": 0.5}, "model.optimizer.layer_decay=0.5: the run has"),
        ({"model__optimizer__ema_decay": 0.99}, "model.optimizer.ema_decay=0.99 has no effect"),
        ({"backbone__weights": "x.pth"}, "backbone.weights=x.pth has no effect: a resumed run loads its weights"),
        ({"weights_min_match": 0.5}, "weights_min_match=0.5 has no effect: a resumed run loads its weights"),
    ],
)
def test_what_the_weights_and_the_order_of_images_belong_to_stays(setting, name):
    with pytest.raises(UserError) as error:
        changed(**setting)
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)
    assert "leave it out" in str(error.value)


def test_nothing_has_changed_where_only_the_checkpoint_and_the_trust_are_given():
    assert changed(ckpt="run") == changed(trust=["mine.MAE"]) == {}


def test_each_setting_that_may_change_exists():
    settings = compose(["model=mae", "data=folder", "data.path=x", "+model.optimizer.momentum=0.9"])
    names = set(setting_keys(settings))
    known = names | {"data.on_error", "model.optimizer.min_lr", "model.optimizer.warmup_epochs"}
    assert set(MAY_CHANGE) <= known


def without_checkpoint(runs, path, state):
    directory = make(runs, path, 0, kinds=())
    summary = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps(summary | {"state": state}))
    return directory


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_run_without_a_checkpoint_starts_again_in_its_directory(runs, state):
    directory = without_checkpoint(runs, "monday/mae", state)
    resumption = find_resumption(str(directory), runs, ["seed=4"])
    assert (resumption.checkpoint, resumption.directory) == (None, directory.resolve())
    assert (resumption.settings["seed"], resumption.overrides) == (3, ["seed=4"])


@pytest.mark.parametrize(("state", "is_found"), [("interrupted", True), ("running", False)])
def test_the_last_run_may_be_one_that_was_interrupted_before_its_first_checkpoint(runs, state, is_found):
    older = make(runs, "monday/mae", 100)
    newer = without_checkpoint(runs, "tuesday/mae", state)
    found = find_resumption("last", runs, [])
    assert found.directory == (newer if is_found else older).resolve()
    assert find_resumption("best", runs, []).directory == older.resolve()
    os.utime(older / "checkpoints" / "last.ckpt")
    assert find_resumption("last", runs, []).directory == older.resolve()
