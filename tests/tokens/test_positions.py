import numpy as np
import pytest
import torch

from vitmae.tokens.positions import sincos_positions


def reference(grid_h, grid_w, dim):
    """The formula of papers on MAE, written out value by value."""
    table = np.zeros((grid_h * grid_w, dim))
    for row in range(grid_h):
        for column in range(grid_w):
            for i in range(dim // 4):
                omega = 10000 ** (-i / (dim / 4))
                at = table[row * grid_w + column]
                at[i], at[dim // 4 + i] = np.sin(column * omega), np.cos(column * omega)
                at[dim // 2 + i], at[3 * dim // 4 + i] = np.sin(row * omega), np.cos(row * omega)
    return torch.from_numpy(table).float()


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (7, 1)])
def test_fixed_positions_follow_the_published_formula_column_first(grid):
    assert torch.allclose(sincos_positions(grid, 32)[0], reference(*grid, 32), atol=1e-6)


def test_rows_of_prefix_tokens_are_zero_and_come_first():
    table = sincos_positions((2, 3), 16, num_prefix_tokens=2)
    assert table.shape == (1, 8, 16)
    assert torch.equal(table[:, :2], torch.zeros(1, 2, 16))
    assert torch.equal(table[:, 2:], sincos_positions((2, 3), 16))


def test_no_two_places_share_a_position():
    table = sincos_positions((8, 8), 64)[0]
    assert torch.cdist(table, table).add(torch.eye(64) * 9).min() > 1e-2


def test_a_width_that_cannot_be_quartered_is_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_positions((2, 2), 18)
