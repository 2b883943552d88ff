import json
import shutil
from pathlib import Path

import pytest
import torch

import vitmae
from tests.weights.parts import build, random_images, save_checkpoint, settings
from vitmae.classes import check_classes
from vitmae.errors import UserError
from vitmae.models.mae import MAE
from vitmae.runs.checkpoint_file import FORMAT
from vitmae.weights.read import read_weights
from vitmae.weights.saved import find_saved, read_saved, rebuild
from vitmae.weights.write import write_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"


def run(tmp_path, *names, kind="mae"):
    made = build(kind)
    for name in names:
        save_checkpoint(tmp_path / "checkpoints" / name, made, settings(kind), class_names=["a", "b"])
    return made


def test_a_run_stands_for_its_best_checkpoint_or_else_its_last(tmp_path):
    assert find_saved(tmp_path) is None
    run(tmp_path, "last.ckpt")
    assert find_saved(tmp_path).name == "last.ckpt"
    run(tmp_path, "best.ckpt")
    assert find_saved(tmp_path).name == "best.ckpt"


@pytest.mark.parametrize("kind", ["mae", "masked_patch", "vit"])
def test_an_objective_is_built_again_as_it_was_saved(tmp_path, kind):
    made = run(tmp_path, "last.ckpt", kind=kind)
    made.mean.fill_(0.3)
    save_checkpoint(tmp_path / "checkpoints" / "last.ckpt", made, settings(kind))
    again = rebuild(read_saved(tmp_path))
    assert not again.training
    assert again.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in again.state_dict().items())
    images = random_images(made.backbone)
    assert torch.equal(again.backbone(images), made.backbone(images))


def test_a_checkpoint_knows_its_facts_and_those_of_its_run(tmp_path):
    run(tmp_path, "last.ckpt")
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"val/loss": 0.5}}))
    (tmp_path / "environment.json").write_text(json.dumps({"git": {"commit": "abc", "dirty": False}}))
    saved = read_saved(tmp_path)
    assert saved.facts == {"class_names": ["a", "b"], "metrics": {"val/loss": 0.5}, "git_commit": "abc"}
    assert saved.objective == "MAE"


@pytest.mark.parametrize("target", ["pathlib.Path.touch", "vitmae.config.build", "vitmae.weights.read.local"])
def test_settings_that_build_what_a_file_may_not_are_refused_and_nothing_runs(tmp_path, target):
    """A checkpoint may come from anybody, and building calls what it names."""
    made, proof = build("mae"), tmp_path / "owned"
    for place in ("model", "backbone", "model.optimizer"):
        config = settings("mae")
        node = config["model"]["optimizer"] if place == "model.optimizer" else config[place]
        touch = {"_target_": "pathlib.Path.touch", "self": str(proof)}
        node |= {"_target_": target, "node": touch, "self": str(proof)}
        path = save_checkpoint(tmp_path / "run.ckpt", made, config)
        refusal = rf"run.ckpt: {place} builds {target}.*trust=\[{target}"
        with pytest.raises(UserError, match=refusal):
            read_saved(path)
        with pytest.raises(UserError, match=refusal):
            read_weights(str(path))
    assert not proof.exists()


class Own(MAE):
    """A user's objective."""


def test_a_users_own_objective_is_built_where_the_user_trusts_it(tmp_path):
    name = f"{__name__}.Own"
    config = settings("mae")
    config["model"]["_target_"] = name
    path = save_checkpoint(tmp_path / "run.ckpt", build("mae"), config)
    with pytest.raises(UserError, match=r"trust="):
        read_saved(path)
    assert isinstance(rebuild(read_saved(path, trust=[name])), Own)
    assert read_weights(str(path), trust=[name]).grid_size == (4, 6)
    assert isinstance(vitmae.load(path, "cpu", trust=[name]).objective, Own)


@pytest.mark.parametrize(
    ("name", "target"), [("mae_format1.ckpt", "mae.MAE"), ("vit_bundle_format1", "supervised.Supervised")]
)
def test_files_of_the_first_format_load_under_the_present_names_and_encode(name, target):
    saved = read_saved(FIXTURES / name)
    assert saved.settings["model"]["_target_"] == f"vitmae.models.{target}"
    assert saved.settings["model"]["optimizer"]["_target_"] == "vitmae.recipe.Recipe"
    check_classes({"data": saved.settings["data"]}, saved.path)
    objective = rebuild(saved)
    images = random_images(objective.backbone)
    latent = objective.backbone(images)
    assert latent.shape == (2, objective.backbone.num_prefix_tokens + objective.backbone.num_patches, latent.shape[2])
    assert latent.isfinite().all()


def test_a_bundle_of_a_future_format_is_refused(tmp_path):
    folder = shutil.copytree(FIXTURES / "vit_bundle_format1", tmp_path / "bundle")
    about = json.loads((folder / "model.json").read_text()) | {"vitmae_format": FORMAT + 1}
    (folder / "model.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="newer vitmae"):
        read_saved(folder)


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
@pytest.mark.parametrize("place", ["model", "backbone", "optimizer"])
def test_a_name_that_only_begins_like_this_projects_is_not_even_imported(tmp_path, monkeypatch, kind, place):
    proof = tmp_path / "imported"
    (tmp_path / "vitmae_other.py").write_text(f"open({str(proof)!r}, 'w')\nThing = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = settings("mae")
    path = save_checkpoint(tmp_path / "run.ckpt", build("mae"), config)
    if kind == "bundle":
        path = tmp_path / "bundle"
        write_weights(read_saved(tmp_path / "run.ckpt"), "bundle", "full", path)
        config = json.loads((path / "model.json").read_text())["config"]
    node = config["model"]["optimizer"] if place == "optimizer" else config[place]
    node["_target_"] = "vitmae_other.Thing"
    if kind == "bundle":
        about = json.loads((path / "model.json").read_text()) | {"config": config}
        (path / "model.json").write_text(json.dumps(about))
    else:
        save_checkpoint(path, build("mae"), config)
    with pytest.raises(UserError, match=r"vitmae_other\.Thing"):
        rebuild(read_saved(path))
    assert not proof.exists()


def test_weights_that_are_not_those_of_the_settings_are_refused(tmp_path):
    path = save_checkpoint(tmp_path / "run.ckpt", build("mae", {"depth": 1}), settings("mae"))
    with pytest.raises(UserError, match="not those of its settings") as error:
        rebuild(read_saved(path))
    assert "\n" not in str(error.value)


def test_what_is_missing_foreign_or_newer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint, run directory or bundle"):
        read_saved(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no checkpoint of this project"):
        read_saved(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}, "vitmae_config": {}, "vitmae_format": 99}, tmp_path / "newer.ckpt")
    with pytest.raises(UserError, match="newer vitmae"):
        read_saved(tmp_path / "newer.ckpt")


def test_settings_that_say_what_a_run_began_with_do_not_stop_it_from_being_built(tmp_path):
    config = settings("mae")
    config["backbone"]["weights"], config["model"]["weights"] = "vit_base_patch16_224.mae", None
    path = save_checkpoint(tmp_path / "run.ckpt", build("mae"), config)
    assert rebuild(read_saved(path)).backbone.depth == 2


def test_weights_of_a_run_come_without_what_was_measured_of_its_data(tmp_path):
    run(tmp_path, "last.ckpt")
    source = read_weights(str(tmp_path))
    assert source.grid_size == (4, 6)
    assert not {"mean", "std", "mean_patch"} & set(source.state)
    assert "decoder.mask_token" in source.state
