import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.parts import batch, objective, tiny_backbone
from vitmae.backbones.backbone import use_fused_attention
from vitmae.backbones.macs import unread_macs
from vitmae.backbones.timm_vit import TimmViT
from vitmae.models.mae import MAE
from vitmae.models.objective import training_flops
from vitmae.models.supervised import Supervised
from vitmae.recipe import Recipe

STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}


def full_size(name):
    with torch.device("meta"):
        return TimmViT(name, img_size=224)


def counted_by_torch(objective):
    """What torch sees when the objective runs on one image."""
    use_fused_attention(objective, False)
    with FlopCounterMode(display=False) as counter:
        objective.train().measure(batch(objective.backbone, size=1))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mae", {}),
        ("mae", {"decoder_embed_dim": 16, "decoder_depth": 1, "mask_ratio": 0.5}),
        ("mae", {"mask_kind": "grid"}),
        ("masked_patch", {}),
        ("masked_patch", {"target": "pixels"}),
        ("vit", {}),
        ("vit", {"pool": "avg"}),
        ("vit", {"pool": "map"}),
    ],
)
@pytest.mark.parametrize("backbone", [{}, {"name": "vit_small_patch14_reg4_dinov2", "in_chans": 1, "mlp_ratio": 2}])
def test_the_count_is_what_torch_counts_when_it_runs(kind, settings, backbone):
    model = objective(kind, tiny_backbone(**backbone), **settings)
    assert model.macs() == counted_by_torch(model)


def test_a_backbone_of_a_users_own_counts_for_itself():
    class Own(TimmViT):
        def macs(self, patches, read=None):
            return 1000 * patches

    model = objective("masked_patch", Own("vit_tiny_patch16_224", 32, patch_size=8))
    assert model.macs() == 1000 * 16 + 8 * model.head.weight.numel()


def test_a_hybrids_convolutions_are_counted():
    model = objective("masked_patch", tiny_backbone("vit_small_r26_s32_224", img_size=(64, 96)))
    assert model.macs() == counted_by_torch(model)


@pytest.mark.parametrize(
    ("name", "gmac"),
    [
        ("vit_tiny_patch16_224", 1.25),
        ("vit_small_patch16_224", 4.60),
        ("vit_base_patch32_224", 4.41),
        ("vit_base_patch16_224", 17.56),
        ("vit_large_patch16_224", 61.55),
        ("vit_huge_patch14_224", 167.3),
    ],
)
def test_a_supervised_vit_costs_what_is_known_of_it(name, gmac):
    with torch.device("meta"):
        model = Supervised(full_size(name), Recipe(), **STATISTICS, num_classes=1000)
    tokens = model.backbone.num_patches + 1
    unread = unread_macs(model.backbone.vit.blocks[-1], tokens, read=1)  # others compute these for nobody
    assert (model.macs() + unread) / 1e9 == pytest.approx(gmac, abs=0.051 if gmac > 100 else 0.006)


@pytest.mark.parametrize(
    ("name", "encoder", "total", "step"),
    [
        ("vit_small_patch16_224", 1.09, 6.51, 39.0),
        ("vit_base_patch16_224", 4.29, 9.78, 58.7),
        ("vit_large_patch16_224", 15.22, 20.76, 124.5),
        ("vit_huge_patch14_224", 41.24, 48.56, 291.4),
    ],
)
def test_a_masked_autoencoder_costs_what_is_known_less_the_patches_it_need_not_touch(name, encoder, total, step):
    with torch.device("meta"):
        model = MAE(
            full_size(name), Recipe(), **STATISTICS, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16
        )
    backbone = model.backbone
    visible = backbone.num_patches // 4
    # the published code projects every patch, decodes every token to the end and predicts every patch
    projection = backbone.vit.patch_embed.proj.weight.numel()
    untouched = (backbone.num_patches - visible) * projection + visible * model.decoder.pred.weight.numel()
    tokens = backbone.num_patches + 1
    untouched += unread_macs(model.decoder.blocks[-1], tokens, read=backbone.num_patches - visible)
    assert (backbone.macs(visible) - visible * projection) / 1e9 == pytest.approx(encoder, abs=0.006)
    assert (model.macs() + untouched) / 1e9 == pytest.approx(total, abs=0.006)
    assert (training_flops(model) + 6 * untouched) / 1e9 == pytest.approx(step, abs=0.051)
