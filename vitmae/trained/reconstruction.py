"""Images with a part hidden, and what a model makes of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Reconstruction:
    """Images with a part hidden, and what the model makes of it; pictures are in [0, 1].

    Attributes:
        original: (B, C, H, W).
        masked: what the model saw, grey where hidden.
        prediction: of every patch.
        pasted: the prediction where hidden, the original elsewhere.
        mask: (B, grid_h, grid_w) bool, True where hidden.
        error: (B, grid_h, grid_w) squared error of each patch's prediction in the units of the loss; nan where visible.
        target: one line that says what is predicted.
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
        """Of each image, its mean error over hidden patches: (B,). Large where an image is unlike those trained on."""
        return self.error.nanmean(dim=(1, 2))

    def figure(self) -> "Figure":
        """The four pictures of each image side by side, as a matplotlib figure."""
        from vitmae.plots.reconstruction import reconstruction_figure

        pictures = (self.original, self.masked, self.prediction, self.pasted)
        return reconstruction_figure(*pictures, self.target, max_images=len(self.original))
