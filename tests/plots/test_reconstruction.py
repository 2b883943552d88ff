import pytest
import torch

from vitmae.plots.reconstruction import as_picture, reconstruction_figure


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 8, 6)), (2, (2, 8, 6)), (3, (2, 8, 6, 3)), (12, (2, 8, 6, 3))])
def test_any_channel_count_can_be_shown(channels, shape):
    assert as_picture(torch.rand(2, channels, 8, 6)).shape == shape


def test_values_outside_0_and_1_are_clipped_not_wrapped():
    assert as_picture(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2)).tolist() == [[[0.0, 1.0]]]


def test_the_figure_has_a_row_per_image_four_named_columns_and_says_the_target():
    columns = [torch.rand(3, 4, 8, 8) for _ in range(4)]
    figure = reconstruction_figure(*columns, target="target: pixels", max_images=2)
    assert len(figure.axes) == 8
    assert [axis.get_title() for axis in figure.axes[:4]] == ["original", "masked", "prediction", "pasted"]
    assert "target: pixels" in figure.get_suptitle()
    assert "first 3 of 4 channels" in figure.get_suptitle()


def test_each_image_is_drawn_in_its_own_column():
    columns = [torch.full((1, 1, 4, 4), value) for value in (0.1, 0.2, 0.3, 0.4)]
    figure = reconstruction_figure(*columns, target="")
    shown = [axis.images[0].get_array()[0, 0] for axis in figure.axes]
    assert shown == pytest.approx([0.1, 0.2, 0.3, 0.4])
