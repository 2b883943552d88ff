import json
import os

import pytest
import torch
from omegaconf import OmegaConf

from vitmae.errors import UserError
from vitmae.runs.resume import find_resumption

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
    assert found.settings == {"name": "mae-digits", "choices": CHOICES, "seed": 3, "trust": []}
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
