import pytest
import timm
import torch
from torch import nn

from tests.models.parts import tiny_backbone
from vitmae.backbones.backbone import use_fused_attention
from vitmae.backbones.timm_vit import TimmViT
from vitmae.errors import UserError
from vitmae.tokens.positions import sincos_positions

NAMES = [
    ("vit_tiny_patch16_224", (32, 48)),
    ("vit_base_patch14_reg4_dinov2", (28, 42)),
    ("vit_base_patch16_siglip_224", (32, 32)),
    ("vit_base_patch16_clip_224", (32, 32)),
    ("deit3_small_patch16_224", (32, 48)),
    ("vit_small_r26_s32_224", (64, 96)),
]


@pytest.mark.parametrize(("name", "img_size"), NAMES)
def test_any_timm_vit_behind_the_seam_computes_what_timm_computes(name, img_size):
    torch.manual_seed(0)
    backbone = TimmViT(name, img_size, depth=2).double().eval()
    images = torch.randn(2, 3, *img_size, dtype=torch.float64)
    with torch.no_grad():
        assert (backbone(images) - backbone.vit.forward_features(images)).abs().max() < 1e-10


@pytest.mark.parametrize(("name", "img_size"), NAMES)
def test_tokens_of_chosen_patches_are_those_of_all_patches_chosen(name, img_size):
    backbone = TimmViT(name, img_size, depth=1).eval()
    images = torch.randn(2, 3, *img_size)
    every = torch.arange(backbone.num_patches).flip(0).expand(2, -1)
    with torch.no_grad():
        chosen = backbone.patch_embed(images, every)
        assert torch.allclose(chosen, backbone.patch_embed(images).flip(1), atol=1e-5)
    assert backbone.pos_embed.shape == (1, backbone.num_patches, backbone.embed_dim)


@pytest.mark.parametrize("in_chans", [1, 3, 4, 12])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_r26_s32_224"])
def test_changing_a_hidden_pixel_changes_no_visible_token(name, in_chans):
    backbone = TimmViT(name, (64, 96), in_chans=in_chans, depth=1).eval()
    keep = torch.tensor([[0, 3], [5, 1]])
    images = torch.randn(2, in_chans, 64, 96)
    changed = images.clone()
    hidden = torch.ones(2, backbone.num_patches, dtype=torch.bool).scatter(1, keep, False)
    height, width = backbone.patch_size
    for b, i in hidden.nonzero().tolist():
        row, column = divmod(i, backbone.grid_size[1])
        changed[b, :, row * height : (row + 1) * height, column * width : (column + 1) * width] += 3.0
    with torch.no_grad():
        assert torch.equal(backbone.patch_embed(images, keep), backbone.patch_embed(changed, keep))
        assert not torch.allclose(backbone.patch_embed(images), backbone.patch_embed(changed))


def test_each_visible_pixel_reaches_a_token():
    backbone = tiny_backbone()
    images = torch.randn(1, 3, 16, 24, requires_grad=True)
    backbone.patch_embed(images).sum().backward()
    assert (images.grad != 0).all()


def test_fixed_positions_are_a_buffer_and_the_papers():
    backbone = tiny_backbone()
    backbone.fix_positions()
    assert "vit.pos_embed" not in dict(backbone.named_parameters())
    assert "vit.pos_embed" in backbone.state_dict()
    assert torch.equal(backbone.pos_embed, sincos_positions((4, 6), 32))
    assert not backbone.vit.pos_embed[:, 0].any()


def test_stochastic_depth_grows_linearly_over_the_blocks():
    backbone = tiny_backbone(depth=3, drop_path_rate=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.vit.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_dropout_and_recomputation_reach_the_blocks():
    backbone = tiny_backbone(drop_rate=0.3, grad_checkpointing=True)
    drops = [part.p for part in backbone.modules() if isinstance(part, nn.Dropout) and part.p]
    assert len(drops) >= 2 * backbone.depth
    plain, recomputed = tiny_backbone(), tiny_backbone(grad_checkpointing=True)
    recomputed.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 24)
    for module in (plain, recomputed):
        module(images).square().sum().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_explicit_and_fused_attention_give_the_same_numbers():
    backbone = tiny_backbone().double().eval()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    results = []
    for fused in (True, False):
        use_fused_attention(backbone, fused)
        assert all(block.attn.fused_attn is fused for block in backbone.vit.blocks)
        results.append(backbone(images))
    assert torch.allclose(*results, atol=1e-12)


def test_layers_are_counted_from_the_embeddings_to_the_norm():
    backbone = tiny_backbone("vit_base_patch14_reg4_dinov2", (28, 28), 14)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert {layers[f"vit.{n}"] for n in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight")} == {0}
    assert layers["vit.blocks.0.attn.qkv.weight"] == 1
    assert layers["vit.blocks.1.mlp.fc2.bias"] == 2
    assert layers["vit.norm.weight"] == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "vit_tiny_patch16_24"}, "did you mean vit_tiny_patch16_224"),
        ({"name": "resnet18"}, "resnet18"),
        (
            {"name": "vit_tiny_patch16_224", "img_size": 30, "patch_size": 4},
            "30 is not divisible by backbone.patch_size=4",
        ),
        ({"name": "vit_tiny_patch16_224", "img_size": 40}, "40 is not divisible"),
        ({"name": "vit_small_r26_s32_224", "img_size": 65}, "65 is not divisible"),
        ({"name": "vit_tiny_patch16_224", "num_heads": 5}, "cannot be built"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused_in_one_line(settings, words):
    with pytest.raises(UserError) as caught:
        TimmViT(**{"img_size": 32, "depth": 1} | settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", timm.list_models("vit_*", exclude_filters=["*rope*", "*rpn*"])[::9])
def test_every_ninth_timm_vit_is_either_usable_or_refused_in_one_line(name):
    size = 256 if "256" in name else 224
    with torch.device("meta"):
        try:
            backbone = TimmViT(name, size)
        except UserError as error:
            assert "\n" not in str(error)
            return
        assert backbone.pos_embed.shape[1] == backbone.num_patches


@pytest.mark.parametrize("name", ["vit_base_patch14_reg4_dinov2", "vit_small_r26_s32_224"])
@pytest.mark.parametrize("frozen", [0, 1, 2, "all"])
def test_a_frozen_part_gets_no_gradient_and_stays_in_eval_mode_and_the_rest_trains(name, frozen):
    sizes = {"img_size": 64} if "r26" in name else {"img_size": 28, "embed_dim": 32, "num_heads": 2}
    backbone = TimmViT(name, depth=2, drop_rate=0.1, drop_path_rate=0.1, **sizes)
    for parameter in backbone.parameters():  # a scale that is zero at first hides the branch behind it
        parameter.data += 0.02 * torch.randn_like(parameter)
    backbone.freeze(frozen)
    backbone.eval()
    backbone.train()
    images = torch.randn(2, 3, *backbone.img_size)
    (backbone(images).square().sum() + torch.zeros((), requires_grad=True)).backward()
    last = {0: -1, "all": 3}.get(frozen, frozen)
    for parameter_name, parameter in backbone.named_parameters():
        is_trained = parameter.grad is not None and bool(parameter.grad.any())
        assert is_trained is (backbone.layer_of(parameter_name) > last), parameter_name
    vit = backbone.vit
    parts = {0: (vit.patch_embed, vit.pos_drop), 1: (vit.blocks[0],), 2: (vit.blocks[1],), 3: (vit.norm, vit, backbone)}
    for layer, modules in parts.items():
        for module in modules:
            assert module.training is (layer > last), (layer, module)
    for layer in (0, 1, 2):
        assert {m.training for m in parts[layer][0].modules()} == {layer > last}


def test_what_is_recomputed_after_frozen_blocks_still_gets_its_gradients():
    backbone = tiny_backbone(depth=2, grad_checkpointing=True)
    backbone.freeze(1)
    backbone(torch.randn(2, 3, *backbone.img_size)).square().sum().backward()
    assert all(p.grad.any() for p in backbone.vit.blocks[1].parameters())


@pytest.mark.parametrize("frozen", [3, -1])
def test_more_blocks_than_there_are_cannot_be_frozen(frozen):
    with pytest.raises(
        UserError, match=rf"model\.freeze={frozen}: the backbone has 2 blocks: choose at most 2, or all"
    ):
        tiny_backbone(depth=2).freeze(frozen)


def test_drop_path_leaves_both_halves_of_a_block_out_for_some_images_and_only_in_training():
    backbone = tiny_backbone(depth=2, drop_path_rate=0.5)
    backbone.remove_norm()
    tokens = torch.randn(1, 25, 32).expand(64, -1, -1)
    torch.manual_seed(0)
    untouched = backbone.vit.blocks[0](tokens)
    untouched_by_second = (backbone.vit.blocks[1](untouched) == untouched).flatten(1).all(1)
    assert 4 < untouched_by_second.sum() < 32  # a quarter of 64
    assert len(backbone.eval().encode(tokens).detach().unique(dim=0)) == 1


def test_dropout_follows_positions_projections_and_both_layers_of_an_mlp():
    vit = tiny_backbone(drop_rate=0.3).vit
    block = vit.blocks[0]
    assert [part.p for part in (vit.pos_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2)] == [0.3] * 4
    assert block.attn.attn_drop.p == 0.0, "not of attention weights (https://arxiv.org/abs/2010.11929, appendix B.1)"


@pytest.mark.parametrize("place", ["pos_drop", "blocks.0.attn.proj_drop", "blocks.0.mlp.drop1", "blocks.0.mlp.drop2"])
def test_each_place_of_dropout_takes_effect_in_training_and_in_no_evaluation(place):
    backbone = tiny_backbone(drop_rate=0.3)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.randn(2, 3, 16, 24)
    plain = backbone(images)
    assert torch.equal(backbone(images), plain)
    backbone.vit.get_submodule(place).p = 0.3
    assert not torch.equal(backbone(images), plain)
    assert torch.allclose(backbone.eval()(images), plain, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_first_weights_like_those_of_vits_published_code_have_its_spreads(name):
    """timm's function of this name draws queries, keys and values as one layer, which makes them smaller."""
    torch.manual_seed(0)
    width = 384
    backbone = TimmViT(name, (42, 42), patch_size=14, embed_dim=width, depth=1, num_heads=2)
    backbone.init_jax()
    vit, block = backbone.vit, backbone.vit.blocks[0]
    bound = (6 / (width + width)) ** 0.5
    for part in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight):
        assert part.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert part.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    for part in (block.mlp.fc1, block.mlp.fc2):
        assert part.weight.std().item() == pytest.approx((2 / (width + 4 * width)) ** 0.5, rel=0.01)
        assert part.bias.std().item() == pytest.approx(1e-6, rel=0.15)
    assert not block.attn.qkv.bias.any()
    assert not block.attn.proj.bias.any()
    assert vit.patch_embed.proj.weight.std().item() == pytest.approx((3 * 14 * 14) ** -0.5, rel=0.01)
    assert not vit.patch_embed.proj.bias.any()
    assert not vit.cls_token.any()
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.06)


def test_maes_first_weights_leave_the_projections_bias_as_conv2d_draws_it():
    torch.manual_seed(0)
    backbone = tiny_backbone(embed_dim=256)
    backbone.init_xavier()
    bias = backbone.vit.patch_embed.proj.bias
    bound = (3 * 4 * 4) ** -0.5
    assert bias.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not backbone.vit.blocks[0].attn.qkv.bias.any()
