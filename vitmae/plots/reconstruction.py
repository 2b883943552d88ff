"""Reconstruction panels: what the model sees, what it predicts, and both together.

Shapes: B images, C channels, H W image.
"""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

_COLUMNS = ("original", "masked", "prediction", "pasted")


def reconstruction_figure(
    original: Tensor, masked: Tensor, prediction: Tensor, pasted: Tensor, target: str, max_images: int = 8
) -> Figure:
    """One row per image; columns: original, masked, raw prediction, prediction pasted into the original.

    The raw prediction has its own column because predictions of visible patches are not trained and look worse.

    Args:
        original: (B, C, H, W) in [0, 1], as the other three.
        masked: what the model sees.
        prediction: of every patch.
        pasted: the prediction on hidden patches and the original elsewhere.
        target: one line that says what is predicted; written on the picture.
        max_images: most rows.
    """
    images = [as_picture(column[:max_images]) for column in (original, masked, prediction, pasted)]
    rows = len(images[0])
    height = original.shape[2] / original.shape[3]
    figure = Figure(figsize=(8, 2 * height * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, len(_COLUMNS), squeeze=False)
    for column, name in enumerate(_COLUMNS):
        axes[0, column].set_title(name, fontsize=10)
        for row in range(rows):
            axes[row, column].imshow(images[column][row], vmin=0, vmax=1, cmap="gray", interpolation="nearest")
            axes[row, column].axis("off")
    channels = original.shape[1]
    note = "" if channels in (1, 3) else f" (the first {3 if channels > 3 else 1} of {channels} channels)"
    figure.suptitle(target + note, fontsize=8, wrap=True)
    return figure


def as_picture(images: Tensor) -> np.ndarray:
    """Images that can be drawn: (B, C, H, W) -> (B, H, W, 3) of the first 3 channels, or (B, H, W) of the first."""
    images = images.detach().float().cpu().clamp(0, 1)
    return (images[:, :3].permute(0, 2, 3, 1) if images.shape[1] >= 3 else images[:, 0]).numpy()
