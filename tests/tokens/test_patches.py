import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitmae.tokens.patches import gather_tokens, paint, pair, patchify, standardize_patches, unpatchify


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3, 4, 12]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_patchify_is_undone_by_unpatchify_on_any_rectangle_and_channel_count(c, ph, pw, gh, gw):
    images = torch.arange(2 * c * ph * gh * pw * gw, dtype=torch.float32).view(2, c, ph * gh, pw * gw)
    patches = patchify(images, (ph, pw))
    assert patches.shape == (2, gh * gw, ph * pw * c)
    assert torch.equal(unpatchify(patches, (gh, gw), (ph, pw)), images)


def test_patch_i_holds_the_pixels_of_row_i_over_grid_w_and_column_i_modulo_grid_w():
    images = torch.randn(1, 3, 8, 12)
    patches = patchify(images, (4, 4))
    for i in range(6):
        row, column = divmod(i, 3)
        cell = images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(patches[0, i], cell.permute(1, 2, 0).flatten())


def test_gather_picks_by_position_also_from_shared_positions():
    tokens, ids = torch.randn(3, 7, 5), torch.tensor([[1, 0], [6, 6], [3, 2]])
    picked = gather_tokens(tokens, ids)
    shared = gather_tokens(tokens[:1], ids)
    for b in range(3):
        assert torch.equal(picked[b], tokens[b, ids[b]])
        assert torch.equal(shared[b], tokens[0, ids[b]])


def test_standardised_patches_use_the_unbiased_variance():
    patches = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert torch.allclose(standardize_patches(patches), torch.tensor([[[-1.0, 0.0, 1.0]]]), atol=1e-5)


def test_a_flat_patch_is_standardised_to_zero_not_to_nan():
    assert torch.equal(standardize_patches(torch.full((1, 1, 8), 3.0)), torch.zeros(1, 1, 8))


def test_paint_fills_each_patch_with_its_value():
    values = torch.arange(6.0).view(1, 6, 1)
    painted = paint(values, (2, 3), (4, 2))
    assert painted.shape == (1, 1, 8, 6)
    assert torch.equal(patchify(painted, (4, 2))[0], values[0].repeat(1, 8))


def test_pair_reads_a_side_and_a_height_and_width():
    assert pair(16) == (16, 16)
    assert pair([8, 12]) == (8, 12)
    with pytest.raises(ValueError, match="values to unpack"):
        pair([1, 2, 3])
