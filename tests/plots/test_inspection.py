import numpy as np
import torch

from vitmae.plots.inspection import attention_distance_figure, filters_figure, rollout_figure, similarity_figure


def test_every_filter_is_drawn_in_its_own_place():
    filters = torch.linspace(0, 1, 10)[:, None, None, None].expand(10, 3, 4, 4)
    axes = filters_figure(filters, columns=4).axes
    assert len(axes) == 12
    assert np.allclose([axis.images[0].get_array()[0, 0, 0] for axis in axes[:10]], filters[:, 0, 0, 0])


def test_the_grid_of_grids_has_each_patch_at_its_place():
    similarity = torch.arange(6.0)[:, None, None].expand(6, 2, 3) / 6
    axes = similarity_figure(similarity).axes[:6]
    assert [axis.get_subplotspec().num1 for axis in axes] == list(range(6))
    assert np.allclose([axis.images[0].get_array()[0, 0] for axis in axes], np.arange(6) / 6)


def test_each_head_is_a_point_at_its_block():
    distance = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    axis = attention_distance_figure(distance, everywhere=4.5).axes[0]
    points = np.concatenate([collection.get_offsets() for collection in axis.collections])
    assert sorted(map(tuple, points.tolist())) == [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6)]
    assert list(axis.lines[0].get_ydata()) == [4.5, 4.5]


def test_what_is_looked_at_is_bright_and_the_rest_dark():
    rollout = torch.zeros(2, 2, 2)
    rollout[0, 0, 0] = rollout[1, 1, 1] = 1.0
    for channels in (1, 3):
        figure = rollout_figure(torch.ones(2, channels, 8, 8), rollout)
        below = figure.axes[2].images[0].get_array()
        assert below[0, 0].max() == 1.0
        assert below[7, 7].max() == 0.0
        figure.canvas.draw()
