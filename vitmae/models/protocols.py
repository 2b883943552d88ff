"""What an objective can do beyond learning, declared by inheritance: `class MAE(Objective, Reconstructs)`.

Other rooms ask with `declared` or `declares`, and never for a class, a name or an attribute: an objective of a user's
own that declares the same is treated the same.

Shapes: B batch, C channels, H W image, N patches, n visible patches, D width, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from torch import Tensor

from vitmae.batch import Batch
from vitmae.tokens.masking import Mask, MaskKind

T = TypeVar("T")


class Panel(NamedTuple):
    """What a reconstruction picture shows, all (B, C, H, W) in [0, 1].

    Attributes:
        original: the images.
        masked: what the model sees.
        prediction: what the model predicts, for every patch.
        pasted: the prediction on hidden patches, the original on the others.
        target: one line that says what the prediction is a prediction of.
    """

    original: Tensor
    masked: Tensor
    prediction: Tensor
    pasted: Tensor
    target: str


class DrawsPanel(ABC):
    """Its predictions can be looked at."""

    @abstractmethod
    def panel(self, batch: Batch) -> Panel:
        """What it hides and predicts of a batch; the batch's keys decide what is hidden."""


class Reconstructs(DrawsPanel):
    """It predicts what a mask hides, whatever mask it is given."""

    @abstractmethod
    def draw_mask(self, keys: Tensor, ratio: float | None = None, kind: MaskKind | None = None) -> Mask:
        """Draw one mask per key: (B,) int64 -> `Mask` over N patches.

        Args:
            keys: see `vitmae.randomness`.
            ratio: share of patches that is hidden; None: that of its training.
            kind: random, block or grid; None: that of its training.

        Raises:
            UserError: this grid has no such mask.
        """

    @abstractmethod
    def panel(self, batch: Batch, mask: Mask | Tensor | None = None) -> Panel:
        """What a mask hides of a batch, and what is predicted there.

        Args:
            batch: its labels are not looked at, and its keys only where there is no mask.
            mask: a `Mask`, or bool (B, N) or (B, grid_h, grid_w), True means hidden; None: drawn from the batch's keys.

        Raises:
            UserError: the mask is for another grid.
        """

    @abstractmethod
    def errors(self, images: Tensor, mask: Mask) -> Tensor:
        """Mean squared error of each hidden patch, nan where visible: normalised images (B, C, H, W) -> (B, N).

        The unit is that of the target that it was trained on.
        """


class Classifies(ABC):
    """It names whole images.

    Attributes:
        num_classes: K.
        pool: what its head reads: ``cls``, ``avg``, ``map``, or a word of its own; shown beside its scores.
    """

    num_classes: int
    pool: str

    @abstractmethod
    def pooled(self, latent: Tensor) -> Tensor:
        """The vector that its head reads: (B, prefix + N, D) -> (B, D)."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """`forward`, as torch's modules are called."""


class HasBaselines(ABC):
    """It logs the loss of trivial predictions beside its own, and has to measure them first."""

    @abstractmethod
    def learn_baselines(self, batches: Iterable[Batch]) -> None:
        """Measure on training images, unaugmented, what the trivial predictions need."""


def declared(objective: object, protocol: type[T]) -> T | None:
    """The objective as what it declares to be; None if it does not."""
    return objective if isinstance(objective, protocol) else None


def declares(objective: type, protocol: type) -> bool:
    """Whether a class of objectives declares a protocol, without building one."""
    return issubclass(objective, protocol)
