"""The result of a reconstruction: images, what was hidden of them, and the model's prediction."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Reconstruction:
    """Images, what was hidden of them, and the model's prediction; pictures are (B, C, H, W) in [0, 1].

    Attributes:
        original: the images.
        masked: the images as the model saw them, grey where hidden.
        prediction: the prediction of every patch.
        pasted: the prediction where hidden, the original elsewhere.
        mask: (B, grid_h, grid_w) bool, True where hidden.
        error: (B, grid_h, grid_w) mean squared error of each hidden patch, in the units of the loss; nan where visible.
        target: what the model predicts, in one line.
    """

    original: Tensor
    masked: Tensor
    prediction: Tensor
    pasted: Tensor
    mask: Tensor
    error: Tensor
    target: str

    @property
    def score(self) -> Tensor:
        """The mean error over hidden patches of each image: (B,); large if the image is unlike the training images."""
        return self.error.nanmean(dim=(1, 2))

    def figure(self) -> "Figure":
        """The four pictures of each image side by side, as a matplotlib figure."""
        from vitmae.plots.reconstruction import reconstruction_figure

        pictures = (self.original, self.masked, self.prediction, self.pasted)
        return reconstruction_figure(*pictures, self.target, max_images=len(self.original))
