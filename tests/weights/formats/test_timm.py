import json

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.weights.parts import build, random_images, shake
from vitmae.errors import UserError
from vitmae.weights.formats import timm as timm_names
from vitmae.weights.load import load_weights
from vitmae.weights.read import read_weights

SHAPE = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def timms(name="vit_tiny_patch16_224", **settings):
    model = timm.create_model(name, **SHAPE | {"num_classes": 10} | settings).eval()
    shake(model)
    return model


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "module", "compiled"])
def test_a_file_with_timms_names_gives_timms_logits(tmp_path, wrap):
    theirs = timms(img_size=(24, 24))
    state = theirs.state_dict()
    if wrap in ("module", "compiled"):
        before = {"module": "module.", "compiled": "model._orig_mod."}[wrap]
        state = {before + name: tensor for name, tensor in state.items()} | {"optimizer.step": torch.ones(1)}
    torch.save({wrap: state, "epoch": 3} if wrap in ("state_dict", "model") else state, tmp_path / "vit.pth")
    ours = build("vit", {"img_size": [24, 24]})
    report = load_weights(ours, str(tmp_path / "vit.pth"))
    assert report.share("encoder", "loaded") == report.share("head", "loaded") == 1.0
    images = random_images(ours.backbone)
    with torch.no_grad():
        assert (theirs(images) - ours(images)).abs().max() < 1e-5


def test_a_classifier_with_an_averaging_head_gives_timms_logits(tmp_path):
    theirs = timms(img_size=(24, 24), global_pool="avg")
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = build("vit", {"img_size": [24, 24]}, pool="avg")
    assert load_weights(ours, str(tmp_path / "vit.pth")).share("head") == 1.0
    images = random_images(ours.backbone)
    with torch.no_grad():
        assert (theirs(images) - ours(images)).abs().max() < 1e-5


def test_a_folder_of_timms_says_its_grid_and_its_licence(tmp_path):
    save_file(timms().state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": SHAPE, "pretrained_cfg": {"license": "mit"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = read_weights(str(tmp_path))
    assert source.grid_size == (4, 6)
    assert source.license == "mit"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor pytorch_model.bin"):
        read_weights(str(tmp_path))


def test_the_grid_of_a_hybrids_folder_is_that_of_its_feature_map(tmp_path):
    arguments = {"img_size": (64, 96), "embed_dim": 32, "depth": 1, "num_heads": 2}
    save_file(timm.create_model("vit_small_r26_s32_224", **arguments).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_small_r26_s32_224", "model_args": arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_weights(str(tmp_path)).grid_size == (2, 3)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_a_timm_name_is_created_with_its_pretrained_weights(monkeypatch):
    asked, model = [], timms(img_size=(24, 24))
    model.pretrained_cfg = {"license": "cc-by-nc-4.0"}

    def create(name, pretrained):
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr(timm_names.timm, "create_model", create)
    source = read_weights("vit_base_patch16_224.mae")
    assert asked == [("vit_base_patch16_224.mae", True)]
    assert source.grid_size == (6, 6)
    assert source.license == "cc-by-nc-4.0"
    assert source.state["backbone.vit.pos_embed"].shape == (1, 37, 32)


def test_a_timm_name_without_a_network_is_one_clear_line(offline):
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224.augreg_in21k cannot be downloaded") as error:
        read_weights("vit_tiny_patch16_224.augreg_in21k")
    assert "\n" not in str(error.value)


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"did you mean vit_base_patch16_224.mae\?"):
        read_weights("vit_base_patch16_224.mea")
    with pytest.raises(UserError, match=r"did you mean vit_base_patch16_224\?"):
        read_weights("vit_bas_patch16_224")


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "../model.pth", "model.safetensors", "~/nowhere"])
def test_a_missing_path_is_called_missing(path):
    with pytest.raises(UserError, match="no such file or folder"):
        read_weights(path)
