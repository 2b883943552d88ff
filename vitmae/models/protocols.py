"""What an objective can do besides training, declared by inheritance: `class MAE(Objective, Reconstructs)`.

Other rooms ask with `declared` or `declares`, and never test a class, a name or an attribute. So a user's own objective
that declares the same is treated the same.

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
        target: one line that says what is predicted, such as pixels.
    """

    original: Tensor
    masked: Tensor
    prediction: Tensor
    pasted: Tensor
    target: str


class DrawsPanel(ABC):
    """Can draw its predictions."""

    @abstractmethod
    def panel(self, batch: Batch) -> Panel:
        """What is hidden and predicted of a batch; the batch's keys decide what is hidden."""


class Reconstructs(DrawsPanel):
    """Predicts what any given mask hides."""

    @abstractmethod
    def draw_mask(self, keys: Tensor, ratio: float | None = None, kind: MaskKind | None = None) -> Mask:
        """Draw one mask per key: (B,) int64 -> `Mask` over N patches.

        Args:
            keys: see `vitmae.randomness`.
            ratio: share of patches that is hidden; None: as in training.
            kind: random, block or grid; None: as in training.

        Raises:
            UserError: the patch grid has no such mask.
        """

    @abstractmethod
    def panel(self, batch: Batch, mask: Mask | Tensor | None = None) -> Panel:
        """What a mask hides of a batch, and what is predicted.

        Args:
            batch: its labels are not used, and its keys only without a mask.
            mask: a `Mask`, or bool (B, N) or (B, grid_h, grid_w), True means hidden; None: drawn from the batch's keys.

        Raises:
            UserError: the mask has another number of patches.
        """

    @abstractmethod
    def errors(self, images: Tensor, mask: Mask) -> Tensor:
        """Mean squared error of each hidden patch, nan where visible: normalised images (B, C, H, W) -> (B, N).

        The unit is that of the training target.
        """


class Classifies(ABC):
    """Classifies whole images.

    Attributes:
        num_classes: K.
        pool: what its head reads: ``cls``, ``avg``, ``map`` or another word; shown beside its scores.
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
    """Logs the losses of trivial predictions, which it measures on training images first."""

    @abstractmethod
    def learn_baselines(self, batches: Iterable[Batch]) -> None:
        """Measure what the trivial predictions need, on training images without augmentation."""


def declared(objective: object, protocol: type[T]) -> T | None:
    """The objective under the type of a protocol; None if it does not declare it."""
    return objective if isinstance(objective, protocol) else None


def declares(objective: type, protocol: type) -> bool:
    """Whether a class of objectives declares a protocol, without building one."""
    return issubclass(objective, protocol)
