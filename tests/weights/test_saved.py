import json

import pytest
import torch

from tests.weights.parts import build, random_images, save_checkpoint, settings
from vitmae.errors import UserError
from vitmae.weights.read import read_weights
from vitmae.weights.saved import find_saved, read_saved, rebuild


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


def test_settings_that_build_something_of_elsewhere_are_refused_and_not_built(tmp_path):
    """A checkpoint may come from anybody, and building calls what it names."""
    made, proof = build("mae"), tmp_path / "owned"
    for place in ("model", "backbone", "optimizer"):
        config = settings("mae")
        node = config["model"]["optimizer"] if place == "optimizer" else config[place]
        node |= {"_target_": "pathlib.Path.touch", "self": str(proof)}
        path = save_checkpoint(tmp_path / "run.ckpt", made, config)
        with pytest.raises(UserError, match=r"builds? pathlib.Path.touch, which is not of this project"):
            rebuild(read_saved(path))
        if place == "backbone":
            with pytest.raises(UserError, match=r"pathlib.Path.touch"):
                read_weights(str(path))
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
