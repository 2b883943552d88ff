"""Where a prediction is wrong: the image, the prediction, and the error of each patch.

Shapes: C channels, H W image, (grid_h, grid_w) patches.
"""

from collections.abc import Mapping

from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from vitmae.plots.reconstruction import as_picture


def error_map_figure(pictures: Mapping[str, Tensor], error: Tensor, title: str, target: str) -> Figure:
    """Pictures side by side, and beside them the error of each patch on a colour scale.

    Args:
        pictures: by their titles, each (C, H, W) in [0, 1].
        error: (grid_h, grid_w) squared errors; nan where nothing is predicted.
        title: of the figure.
        target: one line that says what is predicted; written on the picture.
    """
    height, width = next(iter(pictures.values())).shape[1:]
    columns = len(pictures) + 1
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.2 * height / width + 0.8), layout="constrained")
    axes = figure.subplots(1, columns)
    for axis, (name, picture) in zip(axes, pictures.items(), strict=False):
        axis.imshow(as_picture(picture[None])[0], vmin=0, vmax=1, cmap="gray", interpolation="nearest")
        axis.set_title(name, fontsize=9)
    colours = colormaps["magma"].with_extremes(bad="0.7")  # grey: nothing was predicted
    shown = axes[-1].imshow(error.numpy(), cmap=colours, vmin=0, extent=(0, width, height, 0), interpolation="nearest")
    axes[-1].set_title("error of each patch", fontsize=9)
    figure.colorbar(shown, ax=axes[-1], fraction=0.05)
    for axis in axes:
        axis.axis("off")
    figure.suptitle(f"{title}\n{target}", fontsize=8, wrap=True)
    return figure
