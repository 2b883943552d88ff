"""Pictures of a trained vision transformer: filters, position similarities, attention distance, rollout.

Shapes: B images, L blocks, h heads, N = grid_h * grid_w patches, C channels.
"""

from math import ceil

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from vitmae.plots.reconstruction import as_picture


def filters_figure(filters: Tensor, columns: int = 7) -> Figure:
    """Patch filters in a grid: (count, C, patch_h, patch_w) in [0, 1]."""
    pictures = as_picture(filters)
    rows = ceil(len(filters) / columns)
    figure = Figure(figsize=(columns * 0.8, rows * 0.8 + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, picture in zip(axes, pictures, strict=False):
        axis.imshow(picture, vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    figure.suptitle("principal components of the patch filters", fontsize=9)
    return figure


def similarity_figure(similarity: Tensor) -> Figure:
    """A grid of grids: (N, grid_h, grid_w), the similarity of each patch to all, at the place of that patch."""
    _, grid_h, grid_w = similarity.shape
    figure = Figure(figsize=(grid_w * 0.55 + 1, grid_h * 0.55 + 0.5), layout="constrained")
    axes = figure.subplots(grid_h, grid_w, squeeze=False)
    for axis, plane in zip(axes.flat, similarity, strict=True):
        shown = axis.imshow(plane.numpy(), vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        axis.axis("off")
    figure.colorbar(shown, ax=axes, fraction=0.03, label="cosine similarity")
    figure.suptitle("position of each patch, compared with all others", fontsize=9)
    return figure


def attention_distance_figure(distance: Tensor, everywhere: float) -> Figure:
    """How far each head looks, against depth.

    Args:
        distance: (L, h) in pixels.
        everywhere: the distance of a head that looks at all patches equally; drawn as a dashed line.
    """
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    depth, heads = distance.shape
    for head in range(heads):
        axis.scatter(range(1, depth + 1), distance[:, head].numpy(), s=18, color=f"C{head % 10}")
    axis.axhline(everywhere, color="0.5", linestyle="--", linewidth=1)
    top = 1.1 * max(everywhere, distance.max().item())
    axis.set(xlabel="block", ylabel="mean attention distance (pixels)", ylim=(0, top), xticks=range(1, depth + 1))
    figure.suptitle("each point is one head; dashed: all patches equally", fontsize=9)
    return figure


def rollout_figure(images: Tensor, rollout: Tensor) -> Figure:
    """Images above, and their attention rollout below: (B, C, H, W) in [0, 1], (B, grid_h, grid_w)."""
    count, height, width = len(images), images.shape[2], images.shape[3]
    figure = Figure(figsize=(1.6 * count, 3.2 * height / width + 0.5), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    smooth = F.interpolate(rollout[:, None], size=(height, width), mode="bilinear")[:, 0].numpy()
    for above, below, picture, plane in zip(*axes, as_picture(images), smooth, strict=True):
        above.imshow(picture, vmin=0, vmax=1, cmap="gray")
        share = (plane / plane.max())[..., None]
        below.imshow((picture if picture.ndim == 3 else picture[..., None]) * share, vmin=0, vmax=1, cmap="gray")
        above.axis("off")
        below.axis("off")
    figure.suptitle("what the output looked at: attention rollout", fontsize=9)
    return figure
