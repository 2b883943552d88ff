import argparse

import pytest
import torch

from tests.weights.parts import build, given_mask, random_images
from vitmae.weights.formats.fair import from_fair, to_fair
from vitmae.weights.load import load_weights
from vitmae.weights.read import read_weights

SQUARE = {"img_size": [24, 24]}


def as_published(mae):
    """The state_dict of the published code's MaskedAutoencoderViT with this model's weights, name by name."""
    state = {}
    for name, tensor in mae.state_dict().items():
        if name.startswith("backbone.vit."):
            state[name.replace("backbone.vit.", "")] = tensor
    decoder = {
        name.replace("decoder.", "", 1): t for name, t in mae.state_dict().items() if name.startswith("decoder.")
    }
    state["mask_token"] = decoder.pop("mask_token")
    for name, tensor in decoder.items():
        state[f"decoder_{name}"] = tensor
    return state


@pytest.fixture
def mae():
    return build("mae", SQUARE, decoder_depth=2)


def test_the_published_names_are_these(mae):
    """As in mae_pretrain_vit_base_full.pth."""
    names = set(as_published(mae))
    assert {
        "cls_token",
        "pos_embed",
        "mask_token",
        "decoder_pos_embed",
        "patch_embed.proj.weight",
        "norm.bias",
        "blocks.0.attn.qkv.weight",
        "decoder_embed.weight",
        "decoder_blocks.1.mlp.fc2.bias",
        "decoder_norm.weight",
        "decoder_pred.bias",
    } < names


def test_a_full_file_fills_encoder_and_decoder_and_gives_the_same_loss(tmp_path, mae):
    torch.save({"model": as_published(mae), "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "full.pth")
    fresh = build("mae", SQUARE, seed=7, decoder_depth=2)
    report = load_weights(fresh, str(tmp_path / "full.pth"))
    assert report.share("encoder", "loaded") == 1.0
    assert report.share("decoder") == 1.0
    images, (_, mask) = random_images(mae.backbone), given_mask(mae)
    assert torch.equal(fresh.loss(images, mask), mae.loss(images, mask))


def test_an_encoders_file_fills_the_encoder_and_leaves_the_decoder_new(tmp_path, mae):
    state = {
        name: tensor for name, tensor in as_published(mae).items() if "decoder" not in name and name != "mask_token"
    }
    torch.save({"model": state}, tmp_path / "encoder.pth")
    fresh = build("mae", SQUARE, seed=7, decoder_depth=2)
    before = {name: tensor.clone() for name, tensor in fresh.decoder.state_dict().items()}
    report = load_weights(fresh, str(tmp_path / "encoder.pth"))
    assert report.share("encoder") == 1.0
    assert report.share("decoder", "new") > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.decoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "license_name"),
    [
        ("mae_pretrain_vit_base.pth", "cc-by-nc-4.0"),
        ("mae_visualize_vit_large_ganloss.pth", "cc-by-nc-4.0"),
        ("my.pth", None),
    ],
)
def test_the_published_files_are_known_by_their_names(tmp_path, mae, name, license_name):
    torch.save({"model": as_published(mae)}, tmp_path / name)
    source = read_weights(str(tmp_path / name))
    assert source.license == license_name
    assert bool(source.notes) is (license_name is None)
    report = str(load_weights(build("mae", SQUARE, decoder_depth=2), str(tmp_path / name)))
    assert ("does not allow commercial use" in report) is (license_name is not None)


def test_names_translate_back(mae):
    for name in mae.state_dict():
        if "." in name:
            assert from_fair(to_fair(name)) == name
