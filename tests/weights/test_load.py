import re
from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from tests.weights.parts import build, given_mask, random_images, save_checkpoint, settings
from vitmae.errors import UserError
from vitmae.tokens.positions import sincos_positions
from vitmae.trained.model import Model
from vitmae.weights.load import load_weights
from vitmae.weights.saved import read_saved

CPU = torch.device("cpu")


def saved(path, kind="mae", backbone=None, **model):
    """A checkpoint, and the objective that is in it."""
    made = build(kind, backbone, **model)
    save_checkpoint(path / "run.ckpt", made, settings(kind, backbone, **model))
    return made, str(path / "run.ckpt")


def same(a, b, prefix=""):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in b if name.startswith(prefix) and "." in name)


def test_a_run_of_the_same_shape_is_loaded_whole(tmp_path):
    mae, path = saved(tmp_path)
    fresh = build("mae", seed=7)
    report = load_weights(fresh, path)
    assert report.share("encoder", "loaded") == report.share("decoder", "loaded") == 1.0
    assert same(fresh, mae)
    assert not report.unused
    images, (_, mask) = random_images(mae.backbone), given_mask(mae)
    assert torch.equal(fresh.loss(images, mask), mae.loss(images, mask))


def test_the_statistics_of_the_data_are_never_loaded(tmp_path):
    _, path = saved(tmp_path)
    fresh = build("mae", seed=7)
    fresh.mean.fill_(0.1)
    fresh.mean_patch.fill_(0.2)
    report = load_weights(fresh, path)
    assert (fresh.mean == 0.1).all()
    assert (fresh.mean_patch == 0.2).all()
    assert not {"mean", "std", "mean_patch"} & {match.name for match in report.matches}, "nor missed"


def test_a_backbone_takes_the_encoder_alone(tmp_path):
    mae, path = saved(tmp_path)
    fresh = build("mae", seed=7)
    report = load_weights(fresh.backbone, path)
    assert same(fresh.backbone, mae.backbone)
    assert not same(fresh.decoder, mae.decoder)
    assert all(name.startswith("decoder.") for name in report.unused)


def test_fine_tuning_an_mae_with_an_averaging_head_is_a_full_load_of_the_encoder(tmp_path):
    mae, path = saved(tmp_path)
    vit = build("vit", pool="avg", seed=7)
    report = load_weights(vit.backbone, path)
    assert report.share("encoder") == 1.0
    images = random_images(vit.backbone)
    with torch.no_grad():
        assert torch.equal(mae.backbone.vit.norm(vit.backbone(images)), mae.backbone(images))
    assert {"backbone.vit.norm.weight", "backbone.vit.norm.bias"} < set(report.unused)


@pytest.mark.parametrize(("kind", "other"), [("masked_patch", "vit"), ("vit", "mae"), ("mae", "masked_patch")])
def test_an_encoder_moves_between_objectives_and_a_head_does_not(tmp_path, kind, other):
    made, path = saved(tmp_path, kind)
    classes = {"num_classes": len(made.head.bias)} if kind == "masked_patch" else {}
    fresh = build(other, seed=7, **classes)
    report = load_weights(fresh, path)
    assert report.share("encoder") == 1.0
    assert report.share("head") == report.share("decoder", "loaded") == 0.0


def test_a_head_for_other_classes_stays_new_and_zero(tmp_path):
    vit, path = saved(tmp_path, "vit", num_classes=10)
    fresh = build("vit", num_classes=7)
    fresh.head.weight.data.zero_()
    report = load_weights(fresh, path)
    assert not fresh.head.weight.any()
    assert re.search(r"new +head.weight \(10x32 -> 7x32\)", str(report))
    again = build("vit", num_classes=10, seed=7)
    load_weights(again, path)
    assert torch.equal(again.head.weight, vit.head.weight)


@pytest.mark.parametrize("size", [[24, 24], [8, 32], [32, 40]])
def test_learned_positions_are_resampled_in_encoder_and_decoder(tmp_path, size):
    mae, path = saved(tmp_path, fixed_positions=False)
    fresh = build("mae", {"img_size": size}, seed=7, fixed_positions=False)
    report = load_weights(fresh, path)
    for old, new in ((mae.backbone.vit, fresh.backbone.vit), (mae.decoder, fresh.decoder)):
        wanted = resample_abs_pos_embed(old.pos_embed, list(fresh.backbone.grid_size), [4, 6], num_prefix_tokens=1)
        assert torch.equal(new.pos_embed, wanted)
        assert torch.equal(new.pos_embed[:, 0], old.pos_embed[:, 0])
    grid = f"4x6 -> {size[0] // 4}x{size[1] // 4}"
    assert re.search(rf"resampled +backbone.vit.pos_embed, decoder.pos_embed \({grid}\)", str(report))


@pytest.mark.parametrize("size", [[384, 384], [160, 320], [128, 512]])
def test_a_smooth_position_code_of_224_pixels_stays_smooth_in_encoder_and_decoder(tmp_path, size):
    """14 x 14 -> 24 x 24, 10 x 20, 8 x 32: what grows along rows, or along columns, still does so, and that alone."""
    shape = {"img_size": [224, 224], "patch_size": 16, "depth": 1}
    mae = build("mae", shape, fixed_positions=False, decoder_depth=1)
    row, column = torch.meshgrid(torch.linspace(-1, 1, 14), torch.linspace(-1, 1, 14), indexing="ij")
    for part in (mae.backbone.vit, mae.decoder):
        part.pos_embed.data[:, 1:] = torch.stack([row, column] * 16, dim=-1).view(1, 196, 32)
    save_checkpoint(tmp_path / "run.ckpt", mae, settings("mae", shape, fixed_positions=False, decoder_depth=1))
    fresh = build("mae", shape | {"img_size": size}, seed=7, fixed_positions=False, decoder_depth=1)
    load_weights(fresh, str(tmp_path / "run.ckpt"))
    for old, new in ((mae.backbone.vit, fresh.backbone.vit), (mae.decoder, fresh.decoder)):
        wanted = resample_abs_pos_embed(old.pos_embed, list(fresh.backbone.grid_size), [14, 14], num_prefix_tokens=1)
        assert torch.equal(new.pos_embed, wanted)
        code = new.pos_embed[0, 1:].detach().view(*fresh.backbone.grid_size, 32)
        for dim in (0, 1):
            step = code.diff(dim=dim)
            assert (step[..., dim::2] > 0).all()
            assert step[..., 1 - dim :: 2].abs().max() < 1e-5
            inner = step.narrow(dim, 3, step.shape[dim] - 6)[..., dim::2]  # bicubic bends at the border
            assert inner.max() < 1.3 * inner.min()


@pytest.mark.parametrize("kind", ["mae", "vit"])
def test_fixed_positions_of_another_grid_are_interpolated_whatever_they_are_loaded_for(tmp_path, kind):
    """Evaluating, fine-tuning and training on see the same positions, inside the range that the blocks have learned."""
    _, path = saved(tmp_path)
    fresh = build(kind, {"img_size": [32, 40]}, seed=7)
    report = load_weights(fresh, path)
    wanted = resample_abs_pos_embed(sincos_positions((4, 6), 32, 1), [8, 10], [4, 6], num_prefix_tokens=1)
    assert torch.equal(fresh.backbone.vit.pos_embed, wanted)
    assert torch.equal(Model(read_saved(Path(path)), CPU, img_size=(32, 40)).backbone.vit.pos_embed, wanted)
    if kind == "mae":
        assert torch.equal(fresh.decoder.pos_embed, wanted)
    assert report.share("encoder", "resampled") > 0
    assert "learned there" not in str(report)


def test_learned_positions_stay_those_they_were_in_a_model_that_keeps_them_fixed(tmp_path):
    vit, path = saved(tmp_path, "vit")
    mae = build("mae", seed=7)
    load_weights(mae.backbone, path)
    assert torch.equal(mae.backbone.vit.pos_embed, vit.backbone.vit.pos_embed)
    larger = build("mae", {"img_size": [32, 48]}, seed=7)
    assert "learned there and fixed from here on" in str(load_weights(larger.backbone, path))


def test_a_model_for_other_patches_and_channels_is_filled_too(tmp_path):
    _, path = saved(tmp_path, "vit")
    fresh = build("vit", {"patch_size": 8, "in_chans": 4}, seed=7)
    report = load_weights(fresh.backbone, path)
    assert report.share("encoder") == 1.0
    assert "resampled  backbone.vit.patch_embed.proj.weight (32x3x4x4 -> 32x4x8x8)" in str(report)


def test_the_stem_of_a_hybrid_is_adapted_to_other_channels(tmp_path):
    hybrid = {"name": "vit_small_r26_s32_224", "img_size": [64, 64], "depth": 1, "patch_size": None}
    vit, path = saved(tmp_path, "vit", hybrid)
    fresh = build("vit", hybrid | {"in_chans": 1}, seed=7)
    assert load_weights(fresh.backbone, path).share("encoder") == 1.0
    stem, old = (made.backbone.vit.patch_embed.backbone.stem.conv.weight for made in (fresh, vit))
    assert torch.equal(stem, old.sum(1, keepdim=True))


REGISTERS = {"name": "vit_base_patch14_reg4_dinov2"}


def test_registers_that_are_not_there_stay_new(tmp_path):
    _, path = saved(tmp_path, "vit", REGISTERS | {"name": "vit_small_patch14_dinov2"})
    fresh = build("vit", REGISTERS, seed=7)
    before = fresh.backbone.vit.reg_token.clone()
    report = load_weights(fresh.backbone, path)
    assert torch.equal(fresh.backbone.vit.reg_token, before)
    assert report.share("encoder") > 0.95
    assert "new        backbone.vit.reg_token (not there)" in str(report)


def test_a_model_without_prefix_positions_adds_them_to_its_tokens(tmp_path):
    """The same sum, whether CLS has a row of its own in the table or not."""
    vit, path = saved(tmp_path, "vit")
    reg4 = build("vit", REGISTERS, seed=7)
    load_weights(reg4.backbone, path, min_match=0.9)
    expected = vit.backbone.vit.cls_token + vit.backbone.vit.pos_embed[:, :1]
    assert torch.equal(reg4.backbone.vit.cls_token, expected)
    assert torch.equal(reg4.backbone.vit.pos_embed, vit.backbone.vit.pos_embed[:, 1:])


def test_a_model_with_prefix_positions_gives_none_to_tokens_that_had_none(tmp_path):
    reg4, path = saved(tmp_path, "vit", REGISTERS)
    fresh = build("vit", seed=7)
    load_weights(fresh.backbone, path, min_match=0.9)
    assert not fresh.backbone.vit.pos_embed[:, 0].any()
    assert torch.equal(fresh.backbone.vit.pos_embed[:, 1:], reg4.backbone.vit.pos_embed)
    assert torch.equal(fresh.backbone.vit.cls_token, reg4.backbone.vit.cls_token)


def test_an_encoder_of_which_little_matches_is_refused_and_nothing_is_written(tmp_path):
    _, path = saved(tmp_path, backbone={"depth": 1})
    fresh = build("mae", {"depth": 10}, seed=7)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(UserError, match=r"1\d\.\d\d% of the encoder match, must be ≥ 95% .*weights_min_match") as error:
        load_weights(fresh, path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
    assert load_weights(fresh, path, min_match=0.1).share("encoder") < 0.2


def test_another_width_is_refused_and_said(tmp_path):
    _, path = saved(tmp_path, backbone={"embed_dim": 64})
    with pytest.raises(UserError, match=r"is 256x64 -> 128x32|is 64x256 -> 32x128"):
        load_weights(build("mae"), path)


def test_half_precision_is_loaded_into_full(tmp_path):
    mae = build("mae")
    state = {name: tensor.half() for name, tensor in mae.state_dict().items()}
    torch.save(
        {"model": {name.removeprefix("backbone.vit."): t for name, t in state.items() if "backbone" in name}},
        tmp_path / "half.pth",
    )
    fresh = build("mae", seed=7)
    load_weights(fresh.backbone, str(tmp_path / "half.pth"))
    assert all(parameter.dtype == torch.float32 for parameter in fresh.parameters())


def timms_file(path, mae):
    torch.save(
        {
            name.removeprefix("backbone.vit."): tensor
            for name, tensor in mae.state_dict().items()
            if name.startswith("backbone.")
        },
        path,
    )
    return str(path)


def test_positions_of_a_grid_that_nobody_can_tell_are_refused(tmp_path):
    path = timms_file(tmp_path / "vit.pth", build("mae", {"img_size": [16, 28]}))
    with pytest.raises(UserError, match="29 positions, which are no square"):
        load_weights(build("mae", {"img_size": [24, 32]}).backbone, path)


@pytest.mark.parametrize("size", [[16, 28], [16, 24]])  # 4x6 and CLS are 25 rows, and yet no 5x5
def test_positions_that_are_no_square_are_those_of_the_models_own_grid_if_they_can_be(tmp_path, size):
    mae = build("mae", {"img_size": size}, fixed_positions=False)
    fresh = build("mae", {"img_size": size}, seed=7, fixed_positions=False)
    load_weights(fresh.backbone, timms_file(tmp_path / "vit.pth", mae))
    assert torch.equal(fresh.backbone.vit.pos_embed, mae.backbone.vit.pos_embed)


def test_the_report_counts_values_in_percent(tmp_path):
    _, path = saved(tmp_path)
    text = str(load_weights(build("mae", {"img_size": [32, 40]}, decoder_depth=1), path))
    lines = text.splitlines()
    assert lines[0] == f"weights: {path} (this project's MAE)"
    assert re.fullmatch(r"  encoder +0\.0\d M values: 9\d\.\d% loaded, \d\.\d% resampled", lines[1])
    assert re.match(r"  decoder +0\.0\d M values: ", lines[2])
    assert re.search(r"unused +decoder.blocks.1.norm1.weight, .* and 33 more", text)
