import json
import re

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from tests.weights.parts import build, given_mask, random_images, shake
from vitmae.errors import UserError
from vitmae.weights.load import load_weights
from vitmae.weights.read import read_weights

SQUARE = {"img_size": [24, 24]}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 24,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
}


def saved(folder, kind=ViTMAEForPreTraining, **settings):
    """A model of transformers' with random weights, and the folder it was saved in."""
    if kind is ViTMAEForPreTraining:
        config = ViTMAEConfig(
            **SIZES,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=3,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=128,
            **settings,
        )
    else:
        config = ViTConfig(**SIZES, **settings)
    model = kind(config).eval()
    shake(model)
    model.save_pretrained(folder)
    return model


def mae():
    return build("mae", SQUARE, decoder_depth=3)


def rewrite(folder, rename):
    state = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in state.items()}, folder / "model.safetensors")


def as_on_the_hub(name):
    """The names of facebook/vit-mae-base: what 5.x writes, but for the decoder's layers."""
    return name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")


def as_in_memory(name):
    name = (
        as_on_the_hub(name).replace("encoder.layer.", "layers.").replace(".attention.output.dense", ".attention.o_proj")
    )
    name = re.sub(r"attention\.attention\.(q|k|v)\w+", r"attention.\1_proj", name)
    return name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")


@pytest.mark.parametrize("names", [None, as_on_the_hub, as_in_memory])
def test_a_vitmae_folder_gives_its_own_loss_and_prediction(tmp_path, names):
    theirs = saved(tmp_path, norm_pix_loss=True)
    if names:
        rewrite(tmp_path, names)
    if names is as_in_memory:
        assert set(load_file(tmp_path / "model.safetensors")) == set(theirs.state_dict())
    ours = mae()
    report = load_weights(ours, str(tmp_path))
    assert report.share("encoder") == report.share("decoder") == 1.0
    images = random_images(ours.backbone)
    noise, mask = given_mask(ours)
    with torch.no_grad():
        wanted = theirs(images, noise=noise)
        assert abs(wanted.loss - ours.loss(images, mask)) < 1e-5
        assert (wanted.logits - ours.reconstruct(images, mask)).abs().max() < 1e-4


def test_a_vitmodel_folder_gives_its_own_latent(tmp_path):
    theirs, ours = saved(tmp_path, ViTModel), build("vit", SQUARE)
    report = load_weights(ours.backbone, str(tmp_path))
    assert {"pooler.dense.weight", "pooler.dense.bias"} == set(report.unused)
    images = random_images(ours.backbone)
    with torch.no_grad():
        assert (theirs(images).last_hidden_state - ours.backbone(images)).abs().max() < 1e-5


def test_a_classifiers_folder_gives_its_own_logits(tmp_path):
    theirs, ours = saved(tmp_path, ViTForImageClassification, num_labels=10), build("vit", SQUARE)
    assert load_weights(ours, str(tmp_path)).share("head") == 1.0
    images = random_images(ours.backbone)
    with torch.no_grad():
        assert (theirs(images).logits - ours(images)).abs().max() < 1e-5


def test_a_rectangular_vit_keeps_its_grid(tmp_path):
    theirs = ViTModel(ViTConfig(**SIZES | {"image_size": [16, 32]})).eval()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    ours = build("vit", {"img_size": [16, 32]})
    load_weights(ours.backbone, str(tmp_path))
    images = random_images(ours.backbone)
    with torch.no_grad():
        assert (theirs(images).last_hidden_state - ours.backbone(images)).abs().max() < 1e-5


def test_weights_in_several_files_or_in_a_bin_are_the_same_weights(tmp_path):
    theirs = saved(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "several", max_shard_size="60KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save(load_file(tmp_path / "one" / "model.safetensors"), tmp_path / "bin" / "pytorch_model.bin")
    one, several, binary = (read_weights(str(tmp_path / name)).state for name in ("one", "several", "bin"))
    assert one.keys() == several.keys() == binary.keys()
    assert all(torch.equal(one[name], several[name]) and torch.equal(one[name], binary[name]) for name in one)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    saved(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "other.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../other.safetensors"}})
    )
    with pytest.raises(UserError, match="outside of its folder"):
        read_weights(str(tmp_path / "model"))


def test_another_kind_of_model_and_missing_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type is bert"):
        read_weights(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        read_weights(str(tmp_path))
    save_file({"embeddings.cls_token": torch.ones(1, 1, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no vision transformer"):
        read_weights(str(tmp_path))


def test_the_licence_is_that_of_the_card_but_mae_is_never_commercial(tmp_path):
    saved(tmp_path, ViTModel)
    assert read_weights(str(tmp_path)).license is None
    (tmp_path / "README.md").write_text("---\ntags: [vision]\nlicense: Apache-2.0\n---\nA card.\n")
    source = read_weights(str(tmp_path))
    assert source.license == "apache-2.0"
    config = json.loads((tmp_path / "config.json").read_text()) | {"_name_or_path": "facebook/vit-mae-base"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_weights(str(tmp_path)).license == "cc-by-nc-4.0"
    report = load_weights(build("vit", SQUARE).backbone, str(tmp_path))
    assert re.search(r"warning +the licence cc-by-nc-4.0 does not allow commercial use", str(report))


def test_another_epsilon_is_said(tmp_path):
    saved(tmp_path, ViTModel)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not read_weights(str(tmp_path)).notes
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-12}))
    assert "eps 1e-12" in read_weights(str(tmp_path)).notes[0]


def in_the_hubs_cache(cache, repository, folder):
    """A downloaded repository, as the hub's library keeps it."""
    home = cache / ("models--" + repository.replace("/", "--"))
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots").mkdir()
    folder.rename(home / "snapshots" / "abc")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub's library as it is without a network, and an empty cache."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_a_hub_name_is_read_from_the_cache(tmp_path, offline, prefix):
    saved(tmp_path / "model")
    in_the_hubs_cache(offline, "facebook/vit-mae-base", tmp_path / "model")
    report = load_weights(mae(), prefix + "facebook/vit-mae-base")
    assert report.share("encoder") == 1.0
    assert report.weights.license == "cc-by-nc-4.0"


def test_a_hub_name_without_a_network_is_one_clear_line(offline):
    with pytest.raises(UserError, match="facebook/vit-mae-large cannot be downloaded") as error:
        read_weights("facebook/vit-mae-large")
    assert "\n" not in str(error.value)
