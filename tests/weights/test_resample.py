import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv

from vitmae.tokens.patches import patchify
from vitmae.tokens.positions import sincos_positions
from vitmae.weights.resample import adapt_channels, is_sincos, resample_positions, resample_projection, square_grid

GRIDS = [((14, 14), (24, 24)), ((14, 14), (10, 20)), ((14, 14), (8, 32)), ((10, 20), (14, 14)), ((8, 12), (12, 8))]


def table(grid_size, width=8, prefix=1):
    rows = grid_size[0] * grid_size[1] + prefix
    return torch.randn(1, rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_are_resampled_as_timm_does(old, new, prefix):
    theirs = resample_abs_pos_embed(table(old, prefix=prefix), list(new), list(old), num_prefix_tokens=prefix)
    ours = resample_positions(table(old, prefix=prefix), old, new, prefix)
    assert ours.shape == (1, prefix + new[0] * new[1], 8)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[:, :prefix], table(old, prefix=prefix)[:, :prefix])


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_smooth_position_code_stays_smooth_in_both_directions(old, new):
    """A code linear in row and column is that after resampling too, at the places the new patches have in the image."""

    def code(grid_size):
        row, column = ((torch.arange(side) + 0.5) / side for side in grid_size)
        return torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).view(1, -1, 2)

    resampled = resample_positions(code(old), old, new, 0).view(*new, 2)
    wanted = code(new).view(*new, 2)
    inner = (slice(new[0] // 4, -(new[0] // 4)), slice(new[1] // 4, -(new[1] // 4)))  # bicubic bends at the border
    assert (resampled[inner] - wanted[inner]).abs().max() < 0.01
    assert (resampled.diff(dim=0)[..., 0] > 0).all()
    assert (resampled.diff(dim=1)[..., 1] > 0).all()
    assert resampled.diff(dim=0)[..., 1].abs().max() < 1e-5
    assert resampled.diff(dim=1)[..., 0].abs().max() < 1e-5


def test_fixed_positions_are_recognised_by_grid_and_row_and_column():
    assert is_sincos(sincos_positions((4, 6), 32), (4, 6))
    assert not is_sincos(sincos_positions((6, 4), 32), (4, 6))
    assert not is_sincos(table((4, 6), 32, 0), (4, 6))
    assert not is_sincos(table((4, 6), 30, 0), (4, 6))


@pytest.mark.parametrize(("patches", "grid_size"), [(196, (14, 14)), (1, (1, 1)), (0, None), (-1, None), (195, None)])
def test_a_grid_that_is_not_said_is_a_square_or_unknown(patches, grid_size):
    assert square_grid(patches) == grid_size


@given(old=st.sampled_from([3]), new=st.integers(1, 12))
@settings(deadline=None, max_examples=12)
def test_channels_are_adapted_as_timm_does_from_three(old, new):
    weight = torch.randn(5, old, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(adapt_channels(weight, new), adapt_input_conv(new, weight.clone()))


@given(old=st.integers(1, 12), new=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_a_grey_image_gives_the_same_answer_through_any_number_of_channels(old, new):
    """Where the old channels are alike, or there is one; else the answer keeps its size."""
    weight = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(5, old, 1, 1)
    assert torch.allclose(adapt_channels(weight, new).sum(1), weight.sum(1), rtol=1e-4)


def test_a_larger_patch_answers_an_enlarged_image_as_the_smaller_one_did_the_image():
    drawn = torch.Generator().manual_seed(0)
    weight, image = torch.randn(6, 3, 4, 4, generator=drawn), torch.randn(1, 3, 4, 4, generator=drawn)
    larger = resample_projection(weight, (8, 8), 3)
    enlarged = torch.nn.functional.interpolate(image, (8, 8), mode="bicubic", antialias=True)

    def answer(kernel, pixels):
        return patchify(pixels, kernel.shape[2:])[0] @ kernel.permute(0, 2, 3, 1).flatten(1).T

    assert torch.allclose(answer(larger, enlarged), answer(weight, image), atol=1e-3)
