"""What is written says all that is to be said of a model, and others open it without this project."""

import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from tests.weights.parts import build, given_mask, random_images, save_checkpoint, settings
from vitmae.errors import UserError
from vitmae.models.mae import MAE
from vitmae.models.supervised import Supervised
from vitmae.weights.load import load_weights
from vitmae.weights.read import read_weights
from vitmae.weights.saved import read_saved, rebuild
from vitmae.weights.write import write_weights

SQUARE = {"img_size": [24, 24]}
HYBRID = {"name": "vit_small_r26_s32_224", "img_size": [64, 64], "depth": 1, "patch_size": None}
REGISTERS = {"name": "vit_base_patch14_reg4_dinov2"}
CLASSES = list("abcdefghij")


def saved_model(folder, kind="mae", backbone=SQUARE, facts=None, **model):
    made = build(kind, backbone, **model)
    path = save_checkpoint(folder / "run.ckpt", made, settings(kind, backbone, **model), **facts or {})
    return made, read_saved(path)


def export(folder, layout, what="full", kind="mae", backbone=SQUARE, **model):
    """An objective, and the folder of its export."""
    facts = {"class_names": CLASSES, "license": "mit", "initial_weights": "somewhere"}
    made, saved = saved_model(folder, kind, backbone, facts, **model)
    write_weights(saved, layout, what, folder / layout)
    return made, folder / layout


def place(folder, layout):
    """What a user would name to load such an export."""
    return next(folder.glob("*.pth")) if layout == "fair" else folder


@pytest.mark.parametrize("layout", ["timm", "fair", "bundle"])
def test_the_licence_of_the_first_weights_goes_along(tmp_path, layout):
    _, folder = export(tmp_path, layout, "encoder")
    assert read_weights(str(place(folder, layout))).license == "mit"


@pytest.mark.parametrize("backbone", [{"img_size": [16, 24]}, {"img_size": [24, 24], "in_chans": 4}, REGISTERS, HYBRID])
@pytest.mark.parametrize("layout", ["bundle", "timm"])
def test_rectangles_channels_registers_and_hybrids_keep_their_grid(tmp_path, layout, backbone):
    made, folder = export(tmp_path, layout, "encoder", backbone=backbone)
    source = read_weights(str(folder))
    assert source.grid_size == made.backbone.grid_size
    assert all(
        torch.equal(tensor, source.state[f"backbone.{name}"]) for name, tensor in made.backbone.state_dict().items()
    )


# -- others open it ----------------------------------------------------------------------------------------------------


def test_transformers_opens_an_mae_and_has_the_same_loss(tmp_path):
    mae, folder = export(tmp_path, "hf", decoder_depth=2, decoder_embed_dim=64)
    theirs, report = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    images, (noise, mask) = random_images(mae.backbone), given_mask(mae)
    with torch.no_grad():
        out = theirs.eval()(images, noise=noise)
        assert abs(out.loss - mae.loss(images, mask)) < 1e-5
        assert (out.logits - mae.reconstruct(images, mask)).abs().max() < 1e-4


def test_transformers_opens_a_classifier_with_its_classes_and_prepares_images_as_in_training(tmp_path):
    vit, folder = export(tmp_path, "hf", kind="vit")
    theirs = ViTForImageClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    prepared = AutoImageProcessor.from_pretrained(folder)(list(pixels), return_tensors="pt")["pixel_values"]
    assert torch.allclose(prepared, vit.normalize(pixels), atol=1e-5)
    with torch.no_grad():
        assert (theirs(prepared).logits - vit(vit.normalize(pixels))).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["mae", "masked_patch", "vit"])
def test_transformers_opens_an_encoder_even_of_rectangles(tmp_path, kind):
    made, folder = export(tmp_path, "hf", "encoder", kind, {"img_size": [16, 24]})
    theirs, report = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"]
    images = random_images(made.backbone)
    with torch.no_grad():
        assert (theirs.eval()(images).last_hidden_state - made.backbone(images)).abs().max() < 1e-5


@pytest.mark.parametrize("pool", ["cls", "avg", "map"])
def test_timm_opens_a_classifier(tmp_path, pool):
    vit, folder = export(tmp_path, "timm", kind="vit", pool=pool)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = random_images(vit.backbone)
    with torch.no_grad():
        assert (theirs(images) - vit(images)).abs().max() < 1e-4
    assert theirs.pretrained_cfg["license"] == "mit"
    assert theirs.pretrained_cfg["mean"] == pytest.approx([0.45] * 3)
    assert theirs.pretrained_cfg["label_names"] == CLASSES


@pytest.mark.parametrize("backbone", [SQUARE, {"img_size": [16, 24], "in_chans": 1}, REGISTERS, HYBRID])
def test_timm_opens_an_encoder(tmp_path, backbone):
    mae, folder = export(tmp_path, "timm", "encoder", backbone=backbone)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = random_images(mae.backbone)
    with torch.no_grad():
        assert (theirs.forward_features(images) - mae.backbone(images)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        pytest.param("mae", "encoder", marks=pytest.mark.slow),
        pytest.param("vit", "full", marks=pytest.mark.slow),
        ("mae", "full"),
    ],
)
def test_onnx_agrees_at_any_batch_size(tmp_path, kind, what):
    shallow = {"decoder_depth": 1} if kind == "mae" else {}
    made, folder = export(tmp_path, "onnx", what, kind, {"img_size": [16, 24], "depth": 1}, **shallow)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    pixels = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8)
    images = made.normalize(pixels)
    inputs = {"images": (pixels / 255).numpy()}
    for size in (1, 5):
        with torch.no_grad():
            if kind == "vit":
                wanted = [made(images)]
            elif what == "encoder":
                wanted = [made.backbone(images)]
            else:
                noise, mask = given_mask(made, 5)
                inputs["noise"] = noise.numpy()
                wanted = [made.reconstruct(images, mask), mask.mask]
        got = session.run(None, {name: values[:size] for name, values in inputs.items()})
        for ours, theirs in zip(wanted, got, strict=True):
            assert np.allclose(ours[:size].numpy(), theirs, atol=1e-4)
    assert [output.name for output in session.get_outputs()] == {
        "vit": ["logits"],
        "mae": ["latent"] if what == "encoder" else ["prediction", "mask"],
    }[kind]


def test_a_torch_export_program_agrees_at_any_batch_size(tmp_path):
    vit, folder = export(tmp_path, "torch_export", kind="vit", backbone={"img_size": [16, 24], "depth": 1})
    program = torch.export.load(folder / "model.pt2").module()
    pixels = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        for size in (1, 5):
            assert torch.allclose(program(pixels[:size] / 255), vit(vit.normalize(pixels[:size])), atol=1e-5)


_ELSEWHERE = """
import sys
sys.modules["vitmae"] = None  # to import it is an error from here on
import numpy, onnxruntime, timm, torch, transformers
pixels, images, latent, logits = torch.load("wanted.pt", weights_only=True)
with torch.no_grad():
    mae = transformers.ViTMAEForPreTraining.from_pretrained("mae/hf", mask_ratio=0.0).eval()
    noise = torch.arange(36.0).expand(2, -1)
    assert torch.allclose(mae.vit(images, noise=noise).last_hidden_state, latent, atol=1e-4)
    classifier = transformers.ViTForImageClassification.from_pretrained("vit/hf").eval()
    assert torch.allclose(classifier(images).logits, logits, atol=1e-4)
    assert torch.allclose(timm.create_model("local-dir:vit/timm", pretrained=True).eval()(images), logits, atol=1e-4)
    assert torch.allclose(torch.export.load("vit/torch_export/model.pt2").module()(pixels), logits, atol=1e-4)
session = onnxruntime.InferenceSession("vit/onnx/model.onnx")
assert numpy.allclose(session.run(None, {"images": pixels.numpy()})[0], logits.numpy(), atol=1e-4)
"""


@pytest.mark.slow
def test_exports_are_opened_where_this_project_cannot_be_imported(tmp_path):
    mae, _ = export(tmp_path / "mae", "hf", decoder_depth=1)
    vit, saved = saved_model(tmp_path / "vit", "vit")
    for layout in ("hf", "timm", "onnx", "torch_export"):
        write_weights(saved, layout, "full", tmp_path / "vit" / layout)
    pixels = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    images = (pixels - vit.mean) / vit.std
    with torch.no_grad():
        torch.save((pixels, images, mae.backbone(images), vit(images)), tmp_path / "wanted.pt")
    subprocess.run([sys.executable, "-c", _ELSEWHERE], cwd=tmp_path, check=True)


# -- the bundle --------------------------------------------------------------------------------------------------------


def test_a_bundle_says_all_there_is_to_say(tmp_path):
    facts = {
        "class_names": CLASSES,
        "license": "cc-by-nc-4.0",
        "initial_weights": "vit_base_patch16_224.mae",
        "metrics": {"val/acc1": 0.75},
        "git_commit": "abc",
    }
    vit, saved = saved_model(tmp_path, "vit", {"img_size": [16, 24]}, facts)
    write_weights(saved, "bundle", "full", tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle" / "model.json").read_text())
    assert {name: about[name] for name in facts} == facts
    assert about["objective"] == "Supervised"
    assert about["architecture"]["grid_size"] == [4, 6]
    assert about["architecture"]["in_chans"] == 3
    assert about["mean"] == vit.mean.flatten().tolist()
    again = read_saved(tmp_path / "bundle")
    assert again.settings == saved.settings
    assert all(torch.equal(tensor, vit.state_dict()[name]) for name, tensor in rebuild(again).state_dict().items())


def test_a_bundles_card_has_the_hubs_metadata_and_warns_of_the_licence(tmp_path):
    _, folder = export(tmp_path, "bundle", kind="vit")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "vitmae"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "mit"
    assert "does not allow commercial use" not in card.text
    _, saved = saved_model(tmp_path / "nc", facts={"license": "cc-by-nc-4.0", "metrics": {"val/loss": 0.25}})
    write_weights(saved, "bundle", "encoder", tmp_path / "nc" / "bundle")
    card = ModelCard.load(tmp_path / "nc" / "bundle" / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "does not allow commercial use" in card.text
    assert re.search(r"\| val/loss \| 0.25 \|", card.text)
    assert "encoder only" in card.text
    assert "reconstruct(" not in card.text


def test_an_encoders_bundle_is_built_again_and_exports_no_decoder(tmp_path):
    mae, folder = export(tmp_path, "bundle", "encoder")
    saved = read_saved(folder)
    images = random_images(mae.backbone)
    assert torch.equal(rebuild(saved).backbone(images), mae.backbone(images))
    with pytest.raises(UserError, match="holds an encoder alone"):
        write_weights(saved, "fair", "full", tmp_path / "fair")
    write_weights(saved, "fair", "encoder", tmp_path / "fair")
    assert (tmp_path / "fair" / "encoder.pth").exists()


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "what", "kind", "backbone", "model", "reason"),
    [
        ("timm", "full", "mae", SQUARE, {}, "what MAE predicts with; export what=encoder"),
        ("hf", "full", "masked_patch", SQUARE, {}, "what MaskedPatch predicts with; export what=encoder"),
        ("fair", "full", "masked_patch", SQUARE, {}, "what MaskedPatch predicts with"),
        ("onnx", "full", "masked_patch", SQUARE, {}, "what MaskedPatch predicts with"),
        ("hf", "encoder", "vit", SQUARE, {"pool": "avg"}, "pool=avg"),
        ("hf", "full", "vit", SQUARE, {"pool": "map"}, "pool=map"),
        ("fair", "full", "vit", SQUARE, {"pool": "map"}, "pools by attention"),
        ("hf", "full", "mae", {"img_size": [16, 24]}, {}, "square images and patches only"),
        ("fair", "full", "mae", {"img_size": [16, 24]}, {}, "do not say their grid"),
        ("hf", "encoder", "mae", REGISTERS, {}, "no register tokens"),
        ("fair", "encoder", "mae", {"name": "vit_small_patch14_dinov2"}, {}, "no place for 0.ls1.gamma"),
        ("hf", "encoder", "mae", HYBRID, {}, "patches come from a ResNet"),
    ],
)
def test_a_format_that_cannot_hold_the_model_says_so_in_one_line_and_leaves_nothing(
    tmp_path, layout, what, kind, backbone, model, reason
):
    _, saved = saved_model(tmp_path / "run", kind, backbone, **model)
    with pytest.raises(UserError, match=rf"format={layout} cannot hold this model.*{reason}") as error:
        write_weights(saved, layout, what, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_is_written_over(tmp_path):
    _, folder = export(tmp_path, "bundle")
    with pytest.raises(UserError, match="is there already"):
        write_weights(read_saved(folder), "bundle", "full", folder)
    with pytest.raises(UserError, match="format is one of"):
        write_weights(read_saved(folder), "tensorflow", "full", tmp_path / "tf")


class Own(MAE):
    """An objective of a user's own, which no other library knows."""

    title = "own masked autoencoder"
    paper = "https://example.org/own"
    published_as = None


def test_a_users_own_objective_is_a_bundle_in_full_and_elsewhere_an_encoder(tmp_path):
    config, name = settings("mae", SQUARE), f"{__name__}.Own"
    config["model"]["_target_"] = name
    made = build("mae", SQUARE)
    saved = read_saved(save_checkpoint(tmp_path / "run.ckpt", made, config), trust=[name])
    write_weights(saved, "bundle", "full", tmp_path / "bundle")
    again = rebuild(read_saved(tmp_path / "bundle", trust=[name]))
    assert isinstance(again, Own)
    assert all(torch.equal(tensor, made.state_dict()[key]) for key, tensor in again.state_dict().items())
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "own masked autoencoder (https://example.org/own)" in card
    assert "arxiv:" not in card
    for layout in ("timm", "hf", "fair", "onnx", "torch_export"):
        with pytest.raises(
            UserError, match=rf"format={layout} cannot hold .* what Own predicts with.*what=encoder"
        ) as error:
            write_weights(saved, layout, "full", tmp_path / layout)
        assert "\n" not in str(error.value)
    for layout in ("timm", "hf", "fair"):
        write_weights(saved, layout, "encoder", tmp_path / layout)
        path = tmp_path / layout / "encoder.pth" if layout == "fair" else tmp_path / layout
        assert load_weights(build("vit", SQUARE, seed=7).backbone, str(path)).share("encoder") == 1


def test_heads_are_taken_from_the_same_class_or_the_same_architecture_alone(tmp_path):
    config, name = settings("vit", SQUARE), f"{__name__}.OtherClassifier"
    made = build("vit", SQUARE)
    path = str(save_checkpoint(tmp_path / "run.ckpt", made, config))
    assert load_weights(build("vit", SQUARE, seed=7), path).share("head") == 1
    config["model"]["_target_"] = name
    save_checkpoint(tmp_path / "run.ckpt", made, config)
    assert load_weights(build("vit", SQUARE, seed=7), path, trust=[name]).share("head") == 0
    assert not read_weights(path, trust=[name]).published_as


class OtherClassifier(Supervised):
    """Its head means something else."""

    published_as = None
