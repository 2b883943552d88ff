import pytest
import torch
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.models.parts import batch, objective, tiny_backbone
from vitmae.backbones.timm_vit import TimmViT
from vitmae.errors import UserError
from vitmae.models.mae import MAE
from vitmae.recipe import Recipe
from vitmae.tokens.masking import draw_mask, mask_from_scores
from vitmae.tokens.patches import gather_tokens, paint, patchify


@pytest.fixture
def mae():
    return objective("mae").double().eval()


def images_of(mae, size=4):
    return mae.normalize(batch(mae.backbone, size).images).double()


def mask_of(mae, size=4, **settings):
    return draw_mask(batch(mae.backbone, size).keys, mae.backbone.grid_size, 0.75, **settings)


def with_hidden_pixels_changed(images, mask, backbone):
    hidden = paint(mask.mask[..., None].double(), backbone.grid_size, backbone.patch_size) > 0
    return torch.where(hidden, images.flip(0) * 2 + 1, images)


def test_the_encoder_never_sees_a_hidden_patch(mae):
    images, mask = images_of(mae), mask_of(mae)
    changed = with_hidden_pixels_changed(images, mask, mae.backbone)
    assert not torch.equal(images, changed)
    assert torch.equal(mae.encode(images, mask), mae.encode(changed, mask))
    assert torch.equal(mae.reconstruct(images, mask), mae.reconstruct(changed, mask))


def test_the_encoder_of_a_hybrid_never_sees_a_hidden_patch():
    mae = objective("mae", TimmViT("vit_small_r26_s32_224", (64, 64), depth=1)).eval()
    images, mask = mae.normalize(batch(mae.backbone).images), mask_of(mae)
    changed = with_hidden_pixels_changed(images, mask, mae.backbone).float()
    assert torch.equal(mae.encode(images, mask), mae.encode(changed, mask))


def test_the_encoder_is_asymmetric_it_runs_on_visible_tokens_only(mae):
    assert mae.encode(images_of(mae), mask_of(mae)).shape[1] == mae.backbone.num_prefix_tokens + 6


def test_the_order_of_visible_patches_does_not_matter(mae):
    """Positions travel with their patch: through the encoder, the unshuffle and the decoder."""
    images, mask = images_of(mae), mask_of(mae)
    order = mask.ids_keep.sort(1).values
    ordered = mask_from_scores(torch.ones(4, 24).scatter(1, order, 0.0), 6)
    assert not torch.equal(ordered.ids_keep, mask.ids_keep)
    assert torch.allclose(mae.reconstruct(images, mask), mae.reconstruct(images, ordered), atol=1e-12)


def test_only_hidden_patches_are_scored(mae):
    images, mask = images_of(mae), mask_of(mae)
    pred = mae.reconstruct(images, mask)
    target = mae.target(images, torch.arange(24).expand(4, -1))
    error = (pred - target).square().mean(2)
    assert torch.allclose(mae.loss(images, mask), error[mask.mask].mean())
    assert not torch.allclose(error[mask.mask].mean(), error.mean())


def test_a_hidden_patchs_pixels_enter_its_own_target_only(mae):
    images, mask = images_of(mae), mask_of(mae)
    every = torch.arange(24).expand(4, -1)
    changed = with_hidden_pixels_changed(images, mask, mae.backbone)
    same = (mae.target(images, every) == mae.target(changed, every)).all(2)
    assert torch.equal(same, ~mask.mask)


def test_the_decoder_knows_only_the_position_of_a_hidden_patch(mae):
    """Two hidden patches that swap their positions swap their predictions."""
    decoder = mae.decoder
    images, mask = images_of(mae), mask_of(mae)
    latent = mae.encode(images, mask)
    everything = torch.arange(24).expand(4, -1)
    before = decoder(latent, mask, everything)
    a, b = mask.ids_hide[0, :2].tolist()
    positions = decoder.pos_embed.clone()
    decoder.pos_embed[:, [1 + a, 1 + b]] = positions[:, [1 + b, 1 + a]]
    after = decoder(latent, mask, everything)[0]
    assert torch.allclose(after[[a, b]], before[0, [b, a]], atol=1e-12)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_target_is_normalised_pixels_standardised_by_patch_if_asked(norm_pix_loss):
    mae = objective("mae", norm_pix_loss=norm_pix_loss).double()
    images = images_of(mae)
    target = mae.target(images, torch.arange(24).expand(4, -1))
    patches = patchify(images, (4, 4))
    if norm_pix_loss:
        patches = (patches - patches.mean(2, keepdim=True)) / (
            patches.var(2, keepdim=True, unbiased=True) + 1e-6
        ).sqrt()
    assert torch.allclose(target, patches, atol=1e-12)


@pytest.mark.parametrize(
    ("patch", "channels", "standardised"),
    [((4, 4), 1, True), ((3, 5), 1, False), ((2, 2), 3, False), ((4, 4), 3, True)],
)
def test_patches_of_16_values_and_more_are_standardised_unless_it_is_said(patch, channels, standardised):
    backbone = tiny_backbone(img_size=(2 * patch[0], 2 * patch[1]), patch_size=patch, in_chans=channels)
    assert objective("mae", backbone).norm_pix_loss is standardised
    assert objective("mae", backbone, norm_pix_loss=not standardised).norm_pix_loss is not standardised


def test_the_decoder_is_the_papers_from_vit_b_up_and_of_four_blocks_below():
    with torch.device("meta"):
        large, small = (objective("mae", TimmViT(f"vit_{size}_patch16_224", 32)) for size in ("base", "small"))
    sizes = [(len(d.blocks), d.embed.out_features, d.blocks[0].attn.num_heads) for d in (large.decoder, small.decoder)]
    assert sizes == [(8, 512, 16), (4, 384, 6)]


def test_both_halves_have_fixed_positions_and_learned_ones_by_config():
    fixed, learned = objective("mae"), objective("mae", fixed_positions=False)
    trained = {name for name, _ in fixed.named_parameters() if "pos_embed" in name}
    assert trained == set()
    assert {name for name, _ in learned.named_parameters() if "pos_embed" in name} == {
        "backbone.vit.pos_embed",
        "decoder.pos_embed",
    }


def test_initial_weights_are_the_papers():
    mae = objective("mae", tiny_backbone(embed_dim=64, img_size=(64, 64)))
    for name, layer in mae.named_modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert layer.weight.abs().max() <= bound, name
            assert layer.weight.abs().max() > 0.95 * bound, name
            assert not layer.bias.any(), name
    proj = mae.backbone.vit.patch_embed.proj.weight
    assert 0.95 * (6 / (64 + 48)) ** 0.5 < proj.abs().max() <= (6 / (64 + 48)) ** 0.5
    assert 0.01 < mae.decoder.mask_token.std() < 0.04
    assert 0.01 < mae.backbone.vit.cls_token.std() < 0.04


@pytest.mark.parametrize(
    ("name", "millions"),
    [("vit_base_patch16_224", 111.91), ("vit_large_patch16_224", 329.54), ("vit_huge_patch14_224", 657.07)],
)
def test_the_papers_sizes_have_the_published_parameter_counts(name, millions):
    with torch.device("meta"):
        mae = MAE(TimmViT(name, 224), Recipe(), [0.5] * 3, [0.5] * 3)
    count = sum(p.numel() for p in mae.parameters())
    count += mae.backbone.vit.pos_embed.numel() + mae.decoder.pos_embed.numel()
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_a_panel_shows_the_original_where_visible_and_the_prediction_where_hidden(kind):
    mae = objective("mae", mask_kind=kind).eval()
    data = batch(mae.backbone)
    panel = mae.panel(data)
    hidden = paint(mask_of(mae, kind=kind).mask[..., None].float(), (4, 6), (4, 4)).bool().expand(-1, 3, -1, -1)
    assert torch.equal(panel.original, data.images / 255)
    assert (panel.masked[hidden] == 0.5).all()
    assert torch.equal(panel.pasted[hidden], panel.prediction[hidden])
    assert torch.equal(panel.pasted[~hidden], panel.original[~hidden])
    assert "norm_pix_loss" in panel.target


def test_a_panel_leaks_no_statistics_of_hidden_patches():
    mae = objective("mae").eval()
    data = batch(mae.backbone)
    mask = mask_of(mae)
    changed = with_hidden_pixels_changed(data.images.float(), mask, mae.backbone).clamp(0, 255).to(torch.uint8)
    assert torch.equal(mae.panel(data, mask).prediction, mae.panel(data._replace(images=changed), mask).prediction)


def test_a_users_own_mask_reconstructs(mae):
    own = torch.zeros(4, 4, 6, dtype=torch.bool)
    own[:, 1:3, 2:5] = True
    assert mae.reconstruct(images_of(mae), own).shape == (4, 24, 48)
    assert torch.equal(mae.panel(batch(mae.backbone), own).masked[:, :, 4:12, 8:20], torch.full((4, 3, 8, 12), 0.5))


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="no visible patch"):
        objective("mae", mask_ratio=0.99)
    with pytest.raises(UserError, match="mask_kind=grid"):
        objective("mae", mask_kind="grid", mask_ratio=0.6)
    with pytest.raises(UserError, match="decoder_embed_dim"):
        objective("mae", decoder_embed_dim=30, decoder_num_heads=4)


def transformers_twin(mae, norm_pix_loss):
    """transformers' ViTMAE with this model's weights."""
    backbone, decoder = mae.backbone, mae.decoder
    config = ViTMAEConfig(
        hidden_size=backbone.embed_dim,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.num_heads,
        intermediate_size=4 * backbone.embed_dim,
        image_size=backbone.img_size[0],
        patch_size=backbone.patch_size[0],
        num_channels=backbone.in_chans,
        decoder_hidden_size=decoder.mask_token.shape[-1],
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_num_attention_heads=backbone.num_heads,
        decoder_intermediate_size=4 * decoder.mask_token.shape[-1],
        norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,
    )
    twin = ViTMAEForPreTraining(config).to(next(mae.parameters()).dtype).eval()
    state = {}
    for prefix, ours in (("vit.layers", backbone.vit.blocks), ("decoder.decoder_layers", decoder.blocks)):
        for i, block in enumerate(ours):
            at = f"{prefix}.{i}."
            qkv = block.attn.qkv
            for part, weight, bias in zip("qkv", qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
                state[f"{at}attention.{part}_proj.weight"], state[f"{at}attention.{part}_proj.bias"] = weight, bias
            for name, layer in (
                ("attention.o_proj", block.attn.proj),
                ("mlp.fc1", block.mlp.fc1),
                ("mlp.fc2", block.mlp.fc2),
                ("layernorm_before", block.norm1),
                ("layernorm_after", block.norm2),
            ):
                state[at + name + ".weight"], state[at + name + ".bias"] = layer.weight, layer.bias
    embed = "vit.embeddings."
    state |= {
        embed + "cls_token": backbone.vit.cls_token,
        embed + "position_embeddings": backbone.vit.pos_embed,
        embed + "patch_embeddings.projection.weight": backbone.vit.patch_embed.proj.weight,
        embed + "patch_embeddings.projection.bias": backbone.vit.patch_embed.proj.bias,
        "decoder.mask_token": decoder.mask_token,
        "decoder.decoder_pos_embed": decoder.pos_embed,
    }
    for name, layer in (
        ("vit.layernorm", backbone.vit.norm),
        ("decoder.decoder_embed", decoder.embed),
        ("decoder.decoder_norm", decoder.norm),
        ("decoder.decoder_pred", decoder.pred),
    ):
        state[name + ".weight"], state[name + ".bias"] = layer.weight, layer.bias
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_loss_is_that_of_transformers_on_the_same_weights_images_and_noise(
    norm_pix_loss, in_chans, dtype, tolerance
):
    mae = objective("mae", tiny_backbone(img_size=24, in_chans=in_chans), norm_pix_loss=norm_pix_loss).to(dtype).eval()
    for parameter in mae.parameters():  # away from the zeros and ones of a fresh model
        parameter.data += 0.05 * torch.randn_like(parameter)
    twin = transformers_twin(mae, norm_pix_loss)
    images = mae.normalize(batch(mae.backbone).images).to(dtype)
    noise = torch.rand(4, 36, generator=torch.Generator().manual_seed(3), dtype=dtype)
    with torch.no_grad():
        theirs = twin(images, noise=noise)
        mask = mask_from_scores(noise, 9)
        assert torch.equal(theirs.mask.bool(), mask.mask)
        assert abs(theirs.loss - mae.loss(images, mask)) < tolerance
        assert (theirs.logits - mae.reconstruct(images, mask)).abs().max() < 10 * tolerance


def test_the_kept_ids_are_a_shuffle_that_ids_restore_undoes_in_the_decoder(mae):
    """With a decoder that copies, the visible patches come back in their own places."""
    mask = mask_of(mae)
    latent = torch.arange(24.0).double()[None, :, None].expand(4, 24, 32)
    visible = gather_tokens(latent, mask.ids_keep)
    decoder = mae.decoder
    decoder.embed, decoder.norm, decoder.pred = (nn.Identity() for _ in range(3))
    decoder.blocks = nn.Sequential(nn.Identity())
    decoder.pos_embed = torch.zeros(())
    decoder.mask_token.data.fill_(-1.0)
    out = decoder(torch.cat([visible[:, :1], visible], 1), mask, torch.arange(24).expand(4, -1))[..., 0]
    assert torch.equal(out[~mask.mask], latent[..., 0][~mask.mask])
    assert (out[mask.mask] == -1).all()


def test_a_mask_of_another_grid_is_refused(mae):
    for patches in (12, 48):
        with pytest.raises(UserError, match=f"a mask of {patches} patches does not fit this model: it has 24, 4x6"):
            mae.reconstruct(images_of(mae), torch.arange(patches).expand(4, -1) < 6)
