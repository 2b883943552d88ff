"""Runs that begin with weights, from the command line on."""

import pytest
import torch

from tests.weights.parts import build, save_checkpoint, settings
from vitmae import train
from vitmae.weights.saved import read_saved, rebuild

DIGITS = {"img_size": [8, 8], "in_chans": 1, "patch_size": 2}
BUDGET = [
    "logger=none",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "probe.images=50",
]


def run(folder, *overrides):
    return train.main(
        [
            *BUDGET,
            "backbone.embed_dim=32",
            "backbone.depth=2",
            "backbone.num_heads=2",
            f"hydra.run.dir={folder}",
            f"runs={folder.parent}",
            *overrides,
        ]
    )


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of a masked autoencoder that began with weights of a known licence."""
    mae = build("mae", DIGITS)
    config = settings("mae", DIGITS)
    return mae, save_checkpoint(tmp_path / "mae.ckpt", mae, config, license="cc-by-nc-4.0")


def test_a_run_begins_with_the_weights_that_it_is_given_says_so_and_remembers_their_licence(
    tmp_path, pretrained, capsys
):
    mae, path = pretrained
    folder = tmp_path / "runs" / "vit"
    assert run(folder, "model=vit", "model.pool=avg", "model.optimizer.base_lr=1e-12", f"backbone.weights={path}") == 0
    output = capsys.readouterr().out
    assert "100.0% loaded" in output
    assert "does not allow commercial use" in output
    saved = read_saved(folder)
    assert saved.facts["license"] == "cc-by-nc-4.0"
    assert saved.facts["initial_weights"] == str(path)
    assert saved.facts["class_names"] == list("0123456789")
    trained, began = saved.state["backbone.vit.blocks.1.mlp.fc1.weight"], mae.backbone.vit.blocks[1].mlp.fc1.weight
    assert torch.allclose(trained, began, atol=1e-6)
    rebuild(saved)


def test_a_resumed_run_does_not_load_them_again_and_still_knows_them(tmp_path, pretrained):
    _, path = pretrained
    folder = tmp_path / "runs" / "mae"
    assert run(folder, "model=mae", f"model.weights={path}", "model.decoder_depth=4") == 0
    path.unlink()
    assert train.main([f"ckpt={folder}", "trainer.max_epochs=2"]) == 0
    saved = read_saved(folder / "checkpoints" / "last.ckpt")
    assert saved.facts["initial_weights"] == str(path)
    assert saved.facts["license"] == "cc-by-nc-4.0"


def test_weights_that_do_not_match_end_the_run_before_it_starts(tmp_path, pretrained, capsys):
    _, path = pretrained
    assert run(tmp_path / "runs" / "vit", "model=vit", f"backbone.weights={path}", "backbone.embed_dim=16") == 2
    assert "weights_min_match" in capsys.readouterr().err
    assert (
        run(
            tmp_path / "runs" / "ok",
            "model=vit",
            f"backbone.weights={path}",
            "backbone.embed_dim=16",
            "weights_min_match=0",
        )
        == 0
    )
    assert run(tmp_path / "runs" / "typo", "model=vit", "backbone.weights=./nowhere.pth") == 2
    assert "no such file" in capsys.readouterr().err
