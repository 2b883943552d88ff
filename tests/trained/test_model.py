import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import vitmae
from tests.weights.parts import build, save_checkpoint, settings
from vitmae.errors import UserError
from vitmae.tokens.masking import mask_from_tensor
from vitmae.tokens.patches import patchify
from vitmae.trained.masks import patch_mask
from vitmae.weights.saved import read_saved
from vitmae.weights.write import write_weights

RUNS = {}

load = partial(vitmae.load, device="cpu", precision="32-true")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One checkpoint of each objective."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, model in (("mae", {}), ("masked_patch", {}), ("vit", {"pool": "avg"})):
        made = build(kind, **model)
        RUNS[kind] = made
        save_checkpoint(
            folder / kind / "checkpoints" / "last.ckpt", made, settings(kind, **model), class_names=list("abcdefghij")
        )
    return folder


def pixels(size=(16, 24), count=None, seed=0):
    """uint8 (H, W, 3) or (B, H, W, 3)."""
    shape = (*size, 3) if count is None else (count, *size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_importing_the_package_is_cheap():
    code = "import sys, vitmae; assert not {'torch', 'numpy', 'hydra'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_its_checkpoint_and_its_bundle_give_the_same_vectors(runs, tmp_path):
    path = runs / "mae" / "checkpoints" / "last.ckpt"
    write_weights(read_saved(path), "bundle", "full", tmp_path / "bundle")
    write_weights(read_saved(path), "bundle", "encoder", tmp_path / "encoder")
    places = [runs / "mae", str(path), tmp_path / "bundle", tmp_path / "encoder"]
    vectors = [load(place).encode(pixels()) for place in places]
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)


def test_encoding_is_deterministic_unmasked_and_the_backbones_own(runs):
    model = load(runs / "mae")
    images = torch.from_numpy(pixels(count=3)).permute(0, 3, 1, 2)
    latent = RUNS["mae"].backbone(RUNS["mae"].normalize(images)).detach()
    for pooling, wanted in (
        ("cls", latent[:, 0]),
        ("avg", latent[:, 1:].mean(1)),
        (None, latent[:, 1:].mean(1)),
        ("patches", latent[:, 1:]),
    ):
        assert torch.allclose(model.encode(images, pooling), wanted, atol=1e-5)
    assert torch.equal(model.encode(images), model.encode(images))
    assert torch.allclose(model.encode(images, batch_size=1), model.encode(images), atol=1e-5)


def test_an_image_is_the_same_as_file_picture_array_and_tensor(runs, tmp_path):
    array = pixels((40, 50))
    picture = Image.fromarray(array)
    picture.save(tmp_path / "image.png")
    np.save(tmp_path / "image.npy", array)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    model = load(runs / "mae")
    one = model.prepare(str(tmp_path / "image.png"))
    assert one.shape == (1, 3, 16, 24)
    for image in (
        tmp_path / "image.png",
        tmp_path / "image.npy",
        picture,
        array,
        tensor,
        array / 255,
        tensor.float() / 255,
    ):
        assert torch.equal(model.prepare(image), one)
    for several in (
        [picture, array],
        np.stack([array] * 2),
        torch.stack([tensor] * 2),
        (tensor, str(tmp_path / "image.png")),
    ):
        assert torch.equal(model.prepare(several), one.repeat(2, 1, 1, 1))


def test_an_image_of_the_models_size_is_left_alone_and_another_cropped_at_its_centre(runs):
    model = load(runs / "mae")
    array = pixels()
    assert torch.equal(model.prepare(array)[0], torch.from_numpy(array).permute(2, 0, 1))
    framed = np.zeros((16, 100, 3), np.uint8)
    framed[:, 38:62] = array
    assert torch.equal(model.prepare(framed)[0], torch.from_numpy(array).permute(2, 0, 1))


def test_grey_pictures_become_colours_and_a_turned_photograph_is_upright(runs, tmp_path):
    model = load(runs / "mae")
    grey = pixels()[..., 0]
    assert torch.equal(model.prepare(grey), model.prepare(np.repeat(grey[..., None], 3, 2)))
    upright, exif = Image.fromarray(pixels()), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(model.prepare(turned), model.prepare(upright))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_every_mode_of_pictures_is_taken(runs, mode):
    picture = Image.fromarray(pixels((20, 30))).convert("L" if mode in ("I;16", "F") else "RGB").convert(mode)
    if mode == "F":
        picture = Image.fromarray(np.asarray(picture) / 255)
    assert load(runs / "mae").prepare(picture).shape == (1, 3, 16, 24)


def test_what_is_no_image_is_named(runs, tmp_path):
    model = load(runs / "mae")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    for image, named in (
        (tmp_path / "broken.jpg", "broken.jpg"),
        (tmp_path / "none.jpg", "none.jpg"),
        (np.zeros((4, 4, 7), np.uint8), "image 0"),
        (np.full((4, 4, 3), 3.0), "image 0"),
        ([pixels(), np.zeros(3, np.uint8)], "image 1"),
    ):
        with pytest.raises(UserError, match=named) as error:
            model.encode(image)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no images"):
        model.encode([])
    with pytest.raises(UserError, match="pooling=max"):
        model.encode(pixels(), "max")


# -- classes -----------------------------------------------------------------------------------------------------------


def test_predictions_are_the_likeliest_classes_by_name(runs):
    model = load(runs / "vit")
    images = torch.from_numpy(pixels(count=3)).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = RUNS["vit"](RUNS["vit"].normalize(images)).softmax(1)
    answers = model.predict(images, top=10)
    for answer, probabilities in zip(answers, wanted, strict=True):
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
        assert answer == pytest.approx(dict(zip("abcdefghij", probabilities.tolist(), strict=True)), abs=1e-5)
    assert len(model.predict(pixels(), top=2)[0]) == 2


def test_a_classifiers_vectors_are_what_its_head_reads(runs):
    model, vit = load(runs / "vit"), RUNS["vit"]
    logits = vit.head(model.encode(pixels()))
    assert torch.allclose(logits.softmax(1).max(), torch.tensor(max(model.predict(pixels())[0].values())), atol=1e-5)


def test_only_a_classifier_predicts_and_only_a_trained_decoder_reconstructs(runs, tmp_path):
    write_weights(read_saved(runs / "mae"), "bundle", "encoder", tmp_path / "encoder")
    write_weights(read_saved(runs / "vit"), "bundle", "encoder", tmp_path / "vit")
    for place in (runs / "mae", tmp_path / "vit"):
        with pytest.raises(UserError, match="holds no classifier"):
            load(place).predict(pixels())
    for place in (tmp_path / "encoder", runs / "vit", runs / "masked_patch"):
        with pytest.raises(UserError, match="no trained decoder"):
            load(place).reconstruct(pixels())
    with pytest.raises(UserError, match="no checkpoint, run directory or bundle"):
        load(tmp_path)


# -- reconstruction ----------------------------------------------------------------------------------------------------


def own_mask():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1:3, 2:5] = True
    return mask


def test_a_reconstruction_is_the_models_and_its_error_that_of_the_hidden_patches(runs):
    model, mae = load(runs / "mae"), RUNS["mae"]
    result = model.reconstruct(pixels(count=2), mask=own_mask())
    images = mae.normalize(torch.from_numpy(pixels(count=2)).permute(0, 3, 1, 2))
    mask = mask_from_tensor(own_mask().expand(2, -1, -1))
    with torch.no_grad():
        squared = (mae.reconstruct(images, mask) - mae.target(images, torch.arange(24).expand(2, -1))).square().mean(2)
        loss = mae.loss(images, mask)
    assert torch.equal(result.mask, own_mask().expand(2, -1, -1))
    assert torch.equal(result.error.isnan(), ~result.mask)
    assert torch.allclose(result.error[result.mask], squared.view(2, 4, 6)[result.mask], atol=1e-5)
    assert torch.allclose(result.score.mean(), loss, atol=1e-5)
    patches = patchify(result.pasted, (4, 4))
    assert torch.equal(patches[~mask.mask], patchify(result.original, (4, 4))[~mask.mask])
    assert torch.equal(patches[mask.mask], patchify(result.prediction, (4, 4))[mask.mask])
    assert "norm_pix_loss" in result.target
    assert len(result.figure().axes) == 8


def test_masks_are_a_ratio_a_kind_or_ones_own(runs):
    model = load(runs / "mae")
    hidden = {
        mask: int(model.reconstruct(pixels(), mask).mask.sum()) for mask in (None, 0.5, 0.25, "random", "block", "grid")
    }
    assert hidden == {None: 18, 0.5: 12, 0.25: 6, "random": 18, "block": 18, "grid": 18}
    grid = model.reconstruct(pixels(), "grid").mask[0]
    assert torch.equal((~grid).view(2, 2, 3, 2).sum((1, 3)), torch.ones(2, 3, dtype=torch.int64))
    everywhere = [
        own_mask(),
        own_mask().numpy(),
        own_mask().int(),
        own_mask()[None].repeat(2, 1, 1),
        own_mask().repeat_interleave(4, 0).repeat_interleave(4, 1),
    ]
    for mask in everywhere:
        assert torch.equal(model.reconstruct(pixels(count=2), mask).mask, own_mask().expand(2, -1, -1))
    with pytest.raises(UserError, match=r"the mask has shape \(3, 3\)"):
        model.reconstruct(pixels(), torch.ones(3, 3))
    with pytest.raises(UserError, match="mask=stripes"):
        model.reconstruct(pixels(), "stripes")


def test_a_drawn_mask_is_a_function_of_the_seed_and_the_images_place(runs):
    model = load(runs / "mae")
    images = pixels(count=3)
    first, again, other = (model.reconstruct(images, 0.5, seed=seed).mask for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_patch_is_hidden_if_any_of_its_pixels_is():
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[5, 23] = mask[0, 0] = True
    hidden = patch_mask(mask, (16, 24), (4, 6))[0]
    assert hidden.nonzero().tolist() == [[0, 0], [1, 5]]
