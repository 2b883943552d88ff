"""What a source returns: its splits, each of one of two kinds.

`FixedSizeImages` have one size and are read many at once: from a tensor, or by drawing them. `EncodedImages` are files,
or bytes in a table, that are decoded and cropped one by one.

Shapes: N images of a split, B of them, C channels, H W height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor

from vitmae.data.cache import digest
from vitmae.errors import UserError
from vitmae.limits import Text

Paths = Text | Sequence[Text] | Mapping[str, Text | Sequence[Text]] | None
"""The paths of a set: one, several, or one for each of train, val and test."""


class Images(ABC):
    """One split of a set.

    Attributes:
        labels: (N,) int64; -1 where an image has none.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fingerprint(self, sample: Sequence[int]) -> str:
        """A hash that changes with the images; of files, with their list and with a sample of the files."""


class FixedSizeImages(Images):
    """Images of one size.

    Attributes:
        size: (H, W).
    """

    size: tuple[int, int]

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (B,) int64: (B, C, H, W) uint8, a copy that the caller may change."""

    @abstractmethod
    def read_masks(self, indices: Tensor) -> Tensor:
        """The class of each of their pixels: (B, H, W) uint8.

        Raises:
            UserError: the set has no masks.
        """

    def to(self, device: torch.device) -> "FixedSizeImages":
        """The same images on a device; images that are drawn stay where they are."""
        return self


class MemoryImages(FixedSizeImages):
    """Images in one tensor.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.size = (images.shape[2], images.shape[3])
        self._moved: MemoryImages | None = None

    def fingerprint(self, sample: Sequence[int]) -> str:
        """Of all pixels, which are in memory."""
        return digest(tuple(self.images.shape), self.images.cpu().contiguous().numpy().data)

    def read(self, indices: Tensor) -> Tensor:
        """The images at ``indices``: one gather."""
        return self.images.index_select(0, indices.to(self.images.device))

    def read_masks(self, indices: Tensor) -> Tensor:
        """Raise an error: no set in memory has masks."""
        raise UserError("this set has no per-pixel classes: use data=shapes, or data=folder with data.source.masks")

    def to(self, device: torch.device) -> "MemoryImages":
        """The whole set on a device, where crops and flips are fast; it is copied once."""
        if self.images.device == device:
            return self
        if self._moved is None or self._moved.images.device != device:
            self._moved = MemoryImages(self.images.to(device), self.labels)
        return self._moved


class RenderedImages(FixedSizeImages):
    """Images drawn on request.

    Args:
        render: indices (B,) int64 -> images (B, C, H, W) uint8 and the class of each pixel (B, H, W) uint8.
        labels: (N,) int64.
        size: (H, W).
    """

    def __init__(
        self, render: Callable[[Tensor], tuple[Tensor, Tensor]], labels: Tensor, size: tuple[int, int]
    ) -> None:
        self.render, self.labels, self.size = render, labels, size

    def fingerprint(self, sample: Sequence[int]) -> str:
        """Of the pixels of the sample."""
        drawn = self.read(torch.as_tensor(sample, dtype=torch.int64))
        return digest(len(self), tuple(drawn.shape), drawn.numpy().data)

    def read(self, indices: Tensor) -> Tensor:
        """Draw the images at ``indices``."""
        return self.render(indices)[0]

    def read_masks(self, indices: Tensor) -> Tensor:
        """Draw the images at ``indices`` and return the class of each pixel."""
        return self.render(indices)[1]


class EncodedImages(Images):
    """Encoded images, of any sizes.

    Args:
        labels: (N,) int64.

    Attributes:
        failed: (N,) bool, which images could not be read so far; in memory that workers share.
        has_masks: whether `open_mask` works.
    """

    has_masks = False

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.failed = torch.zeros(len(labels), dtype=torch.bool).share_memory_()

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """The file of an image."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image, for messages."""

    @abstractmethod
    def open_mask(self, index: int) -> BinaryIO:
        """The file of an image's per-pixel classes, itself an image.

        Raises:
            UserError: the image has no mask.
        """


class Stats(NamedTuple):
    """Mean and standard deviation of images.

    Attributes:
        mean: one value per channel, of pixels in [0, 1].
        std: one value per channel, over all pixels of all images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Splits:
    """A set of images.

    Attributes:
        train: what is trained on.
        val: what is validated on; None: a part of the training images is set aside.
        test: what is scored at the end.
        class_names: one per class, in the order of the labels; None without labels.
        stats: None if they must be measured.
        num_mask_classes: of the per-pixel classes, with the background; None without masks.
    """

    train: Images
    val: Images | None = None
    test: Images | None = None
    class_names: tuple[str, ...] | None = None
    stats: Stats | None = None
    num_mask_classes: int | None = None


class Source(Protocol):
    """A set of images that can be loaded."""

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """Find the set, and load it if it is small.

        Args:
            path: of the set on disk; None for a set that is drawn or installed.
            img_size: (h, w) of the model; a set that is drawn is drawn in this size.
            in_chans: channels that images must have.

        Raises:
            UserError: the set is missing, or has another layout.
        """
