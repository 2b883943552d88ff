import torch

from vitmae.plots.error_map import error_map_figure


def test_each_picture_has_its_place_and_the_errors_have_their_scale():
    pictures = {"original": torch.rand(3, 8, 12), "prediction": torch.rand(3, 8, 12)}
    error = torch.rand(2, 3)
    error[1, 2] = float("nan")
    figure = error_map_figure(pictures, error, "photo.jpg   score 0.5", "target: pixels")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["original", "prediction", "error of each patch"]
    shown = figure.axes[2].images[0]
    assert shown.get_array().shape == (2, 3)
    assert shown.get_array().mask[1, 2]
    assert shown.get_extent() == [0, 12, 8, 0]
    assert "target: pixels" in figure.get_suptitle()


def test_any_number_of_channels_can_be_drawn():
    for channels in (1, 2, 4):
        error_map_figure({"original": torch.rand(channels, 8, 8)}, torch.rand(2, 2), "a", "b").canvas.draw()
