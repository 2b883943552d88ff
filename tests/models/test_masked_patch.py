import math

import pytest
import torch

from tests.models.parts import batch, objective, tiny_backbone
from vitmae.errors import UserError
from vitmae.models.baselines import class_frequencies
from vitmae.tokens.masking import draw_corruption
from vitmae.tokens.patches import gather_tokens

TARGETS = ["mean_color", "downsampled_color", "pixels"]


def colour_image(backbone, colours):
    """An image whose patch i has the constant colour colours[i] (uint8)."""
    from vitmae.tokens.patches import paint

    return paint(torch.tensor(colours)[None].float(), backbone.grid_size, backbone.patch_size).to(torch.uint8)


def test_the_mean_colour_of_unnormalised_pixels_falls_in_its_3_bit_bin():
    model = objective("masked_patch", tiny_backbone(img_size=(4, 16)))
    images = colour_image(model.backbone, [[0, 0, 0], [255, 255, 255], [31, 32, 64], [255, 128, 0]])
    bins = [(0, 0, 0), (7, 7, 7), (0, 1, 2), (7, 4, 0)]
    assert model.target(images)[0, :, 0].tolist() == [r * 64 + g * 8 + b for r, g, b in bins]


def test_the_mean_is_of_the_whole_patch_not_of_its_normalised_values():
    model = objective("masked_patch", tiny_backbone(img_size=(4, 8), in_chans=1))
    image = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    image[..., :2] = 255
    assert model.target(image)[0, :, 0].tolist() == [4, 0]


def test_the_miniature_has_one_class_for_each_of_4_by_4_cells():
    model = objective(
        "masked_patch", tiny_backbone(img_size=(8, 16), patch_size=8, in_chans=1), target="downsampled_color"
    )
    image = torch.arange(16, dtype=torch.uint8).mul(16).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    image = torch.cat([torch.zeros_like(image), image], dim=3)
    assert model.target(image)[0, 1].tolist() == [i // 2 for i in range(16)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_only_corrupted_patches_are_scored(target, in_chans):
    model = objective("masked_patch", tiny_backbone(in_chans=in_chans), target=target)
    data = batch(model.backbone)
    before = model.measure(data)
    wanted = model.target(data.images)
    corrupted = draw_corruption(data.keys, 24, 0.5).mask
    for changed, same in ((~corrupted, True), (corrupted, False)):
        other = torch.where(
            changed[..., None], wanted.flip(2) if target == "pixels" else (wanted + 3) % model.num_bins, wanted
        )
        model.target = lambda images, other=other: other
        assert torch.equal(model.measure(data)["loss"], before["loss"]) is same


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_that_of_the_definition(target):
    model = objective("masked_patch", target=target).double().eval()
    data = batch(model.backbone)
    corruption = draw_corruption(data.keys, 24, 0.5)
    every = torch.arange(24).expand(4, -1)
    out = model.predict(model.normalize(data.images).double(), corruption, every)[corruption.mask]
    wanted = model.target(data.images)[corruption.mask]
    model.learn_baselines([data])
    measured = model.to(torch.float64).measure(data)
    if target == "pixels":
        expected = (out - wanted).square().mean()
    else:
        logits = out.view(*wanted.shape, 512).log_softmax(-1)
        expected = -logits.gather(-1, wanted[..., None]).mean()
        assert torch.isclose(measured["acc1"], (logits.argmax(-1) == wanted).float().mean())
    assert torch.isclose(measured["loss"].double(), expected, rtol=1e-4)


def test_embeddings_are_corrupted_before_positions_are_added():
    """A masked patch still knows where it is: its token is the mask token plus its own position."""
    model = objective("masked_patch").eval()
    data = batch(model.backbone)
    corruption = draw_corruption(data.keys, 24, 0.5)
    seen = {}
    model.backbone.encode = lambda tokens, ids: gather_tokens(seen.setdefault("tokens", tokens), ids - 1)
    model.predict(model.normalize(data.images), corruption, corruption.ids)
    expected = (model.mask_token + model.backbone.pos_embed).expand(4, -1, -1)
    assert torch.allclose(seen["tokens"][corruption.masked], expected[corruption.masked])


def test_the_encoder_sees_the_full_length_and_masked_content_is_hidden():
    model = objective("masked_patch").eval()
    data = batch(model.backbone)
    corruption = draw_corruption(data.keys, 24, 0.5)
    images = model.normalize(data.images)
    from vitmae.tokens.patches import paint

    hidden = paint(corruption.masked[..., None].float(), (4, 6), (4, 4)) > 0
    donors = torch.zeros(4, 24, dtype=torch.bool).scatter(1, corruption.source, True)
    masked_donor = (donors & corruption.masked & (corruption.source != torch.arange(24)).any(1, keepdim=True)).any()
    changed = torch.where(hidden, images + 5.0, images)
    swapped_from = {
        (b, corruption.source[b, i].item()) for b, i in (corruption.source != torch.arange(24)).nonzero().tolist()
    }
    clean = [b for b in range(4) if not any(corruption.masked[b, s] for at, s in swapped_from if at == b)]
    assert clean or masked_donor
    out = [model.predict(x, corruption, torch.arange(24).expand(4, -1)) for x in (images, changed)]
    assert out[0].shape[1] == 24
    for b in clean:
        assert torch.equal(out[0][b], out[1][b])


@pytest.mark.parametrize("target", TARGETS)
def test_a_panel_shows_the_predictions_on_corrupted_patches_only(target):
    model = objective("masked_patch", target=target).eval()
    data = batch(model.backbone)
    panel = model.panel(data)
    corrupted = draw_corruption(data.keys, 24, 0.5).mask
    from vitmae.tokens.patches import paint

    where = paint(corrupted[..., None].float(), (4, 6), (4, 4)).bool().expand(-1, 3, -1, -1)
    assert torch.equal(panel.pasted[~where], panel.original[~where])
    assert torch.equal(panel.pasted[where], panel.prediction[where])
    assert target in panel.target


def test_a_panel_paints_a_class_in_the_middle_colour_of_its_bin():
    model = objective("masked_patch", tiny_backbone(img_size=(4, 8)))
    logits = torch.zeros(1, 2, 512)
    logits[0, 0, 7 * 64 + 4 * 8 + 0] = 1.0
    assert model._colors(logits)[0, 0, :3].tolist() == pytest.approx([15 / 16, 9 / 16, 1 / 16])


def test_baselines_are_the_entropy_of_constant_colours():
    model = objective("masked_patch", tiny_backbone(in_chans=1)).eval()
    data = batch(model.backbone)
    model.learn_baselines([data])
    values = model.measure(data)
    frequencies = model.constant
    entropy = -(frequencies * frequencies.log()).sum()
    assert abs(values["loss_mean_patch"] - entropy) < 0.35
    assert values["loss_visible_mean"] < math.log(8)


def test_a_baseline_sees_the_patches_that_are_not_corrupted_and_no_others():
    model = objective("masked_patch", target="pixels").double().eval()
    data = batch(model.backbone)
    target, mask = model.target(data.images), draw_corruption(data.keys, 24, 0.5).mask
    colours = torch.stack([patches[~hidden].view(-1, 3).mean(0) for patches, hidden in zip(target, mask, strict=True)])
    expected = (target - colours.repeat(1, 16)[:, None])[mask].square().mean()
    assert model.measure(data)["loss_visible_mean"].item() == pytest.approx(expected.item())


def test_a_class_that_the_training_set_lacks_is_unlikely_and_not_impossible():
    frequencies = class_frequencies([torch.tensor([[[0], [0]], [[2], [0]]]), torch.tensor([[[2], [0]]])], 4)
    torch.testing.assert_close(frequencies, torch.tensor([5.0, 1.0, 3.0, 1.0]) / 10)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="12 channels"):
        objective("masked_patch", tiny_backbone(in_chans=12))
    with pytest.raises(UserError, match="4 pixels and more"):
        objective("masked_patch", tiny_backbone(patch_size=2), target="downsampled_color")
    with pytest.raises(UserError, match=r"mask_ratio=0\.0: must be > 0 and < 1"):
        objective("masked_patch", mask_ratio=0.0)
