import pytest
import torch

from tests.weights.parts import build, random_images
from vitmae.tokens.positions import sincos_positions
from vitmae.trained.inspection import (
    attention_distance,
    attention_maps,
    attention_rollout,
    patch_filters,
    position_similarity,
)

IMAGES = 2


@pytest.fixture(scope="module")
def backbone():
    return build("mae").backbone


def test_attention_is_that_which_the_backbone_computes_with(backbone):
    """Its rows sum to one, and it weights the values as the block's own output says."""
    seen = {}
    hook = backbone.vit.blocks[1].attn.register_forward_hook(
        lambda _, inputs, output: seen.update(x=inputs[0], out=output)
    )
    fused = backbone.vit.blocks[0].attn.fused_attn
    images = random_images(backbone)
    maps = attention_maps(backbone, images)
    hook.remove()
    assert maps.shape == (2, IMAGES, 2, 25, 25)
    assert torch.allclose(maps.sum(-1), torch.ones(2, IMAGES, 2, 25), atol=1e-5)
    attn = backbone.vit.blocks[1].attn
    values = attn.qkv(seen["x"])[..., 64:].unflatten(2, (2, 16)).transpose(1, 2)
    out = attn.proj((maps[1] @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(out, seen["out"], atol=1e-5)
    assert backbone.vit.blocks[0].attn.fused_attn == fused
    assert not backbone.vit.blocks[0].attn.attn_drop._forward_hooks


def distances():
    return (
        torch.tensor([[[abs(a // 6 - b // 6) * 4, abs(a % 6 - b % 6) * 8] for b in range(24)] for a in range(24)])
        .float()
        .norm(dim=2)
    )


def test_a_head_that_looks_everywhere_looks_as_far_as_patches_are_apart_on_average():
    uniform = torch.full((1, 1, 1, 24, 24), 1 / 24)
    assert torch.allclose(attention_distance(uniform, (4, 6), (4, 8)), distances().mean().view(1, 1))


def test_a_head_that_looks_at_itself_looks_nowhere_and_at_its_neighbour_one_patch_far():
    itself = torch.eye(24).expand(2, 3, 1, 24, 24)
    assert not attention_distance(itself, (4, 6), (4, 8)).any()
    below = torch.eye(24).roll(6, dims=1)[:18]
    maps = torch.zeros(1, 1, 1, 24, 24)
    maps[..., :18, :] = below
    maps[..., 18:, :] = torch.eye(24)[18:]
    assert torch.allclose(attention_distance(maps, (4, 6), (4, 8)), torch.tensor(4 * 18 / 24).view(1, 1))


def test_attention_to_prefix_tokens_is_nowhere():
    uniform = torch.full((1, 1, 1, 29, 29), 1 / 29)
    assert torch.allclose(attention_distance(uniform, (4, 6), (4, 8)), distances().mean().view(1, 1))


def test_the_rollout_of_attention_to_one_patch_is_that_patch_and_it_sums_to_one():
    maps = torch.zeros(3, 1, 2, 25, 25)
    maps[..., 1 + 8] = 1.0  # every token looks at patch 8
    rollout = attention_rollout(maps, (4, 6))
    assert rollout.argmax() == 8
    assert torch.allclose(rollout.sum(), torch.tensor(1.0))
    assert rollout.flatten()[8] > 0.99


def test_the_rollout_without_cls_is_the_mean_over_patches():
    rollout = attention_rollout(torch.eye(24).expand(2, 1, 1, 24, 24), (4, 6))
    assert torch.allclose(rollout, torch.full((1, 4, 6), 1 / 24))


def test_the_rollout_multiplies_blocks_in_their_order():
    first, second = torch.zeros(25, 25), torch.zeros(25, 25)
    first[:, 5], second[:, 0] = 1.0, 1.0  # the first brings patch 4 to all tokens, the second looks at CLS
    rollout = attention_rollout(torch.stack([first, second])[:, None, None], (4, 6))
    assert rollout.argmax() == 4


def test_a_position_is_most_like_itself_and_likeness_is_mutual():
    similarity = position_similarity(sincos_positions((4, 6), 32), (4, 6))
    flat = similarity.flatten(1)
    assert torch.allclose(flat.diagonal(), torch.ones(24))
    assert torch.allclose(flat, flat.T, atol=1e-6)
    assert (flat.argmax(1) == torch.arange(24)).all()


def test_filters_are_the_directions_in_which_the_projection_varies():
    direction = torch.randn(3 * 4 * 4, generator=torch.Generator().manual_seed(0))
    weight = (torch.randn(32, 1, generator=torch.Generator().manual_seed(1)) * direction).view(32, 3, 4, 4)
    filters = patch_filters(weight, 5)
    assert filters.shape == (5, 3, 4, 4)
    assert filters.min() >= 0
    assert filters.max() <= 1
    cosine = torch.cosine_similarity(filters[0].flatten() - 0.5, direction, dim=0)
    assert abs(cosine) > 0.999
