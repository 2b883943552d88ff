"""Request -> batch: read or decode, crop, flip. Runs in the workers, or in the main process.

A batch does not depend on the process that makes it, nor on the batches before it: every random number is drawn from
the keys of the samples. A key is a function of (seed, epoch, index, repeat); in evaluation, of (seed, index).

Shapes: B rows of a batch, C channels, h w the model's image size.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitmae.batch import Batch
from vitmae.data.crops import View, resize_box, resize_mask
from vitmae.data.decode import Pixels, UnreadableImage, decode
from vitmae.data.samplers import Request
from vitmae.data.splits import EncodedImages, FixedSizeImages
from vitmae.errors import UserError
from vitmae.files import reason_of
from vitmae.machine_faults import is_exhausted
from vitmae.randomness import fold, fold_each, fold_indices

log = logging.getLogger(__name__)

HELD_DECODED = 32 * 2**20  # bytes of decoded images whose boxes are drawn together, which is faster than one by one


class MaskedBatch(NamedTuple):
    """A batch with the class of every pixel.

    Attributes:
        batch: the images.
        masks: (B, h, w) uint8; 255 where a pixel has no class.
    """

    batch: Batch
    masks: Tensor


def sample_keys(seed: int, epoch: int | None, indices: Tensor, repeats: int = 1) -> Tensor:
    """One key per row of a batch: indices (n,) int64 of the split -> (n * repeats,) int64."""
    if epoch is None:
        return fold_indices(fold(seed, "evaluation"), indices)
    keys = fold_indices(fold(seed, epoch), indices)
    return torch.cat([fold_each(keys, repeat) for repeat in range(repeats)])


def batch_key(seed: int, epoch: int | None, indices: Tensor) -> int:
    """The key of a batch, from its first image: it differs between ranks and steps."""
    return fold(seed, "batch", -1 if epoch is None else epoch, int(indices[0]))


class FixedSizeReader:
    """Batches of images of one size, made by a few operations on the whole batch.

    Args:
        images: a split.
        index: (n,) int64, which of its images.
        view: how they are cropped.
        seed: of the samples' keys.
        masks: return `MaskedBatch`es.
    """

    def __init__(self, images: FixedSizeImages, index: Tensor, view: View, seed: int, *, masks: bool = False) -> None:
        self.images, self.index, self.view = images, index, view
        self.seed, self.masks = seed, masks

    def __getitem__(self, request: Request) -> Batch | MaskedBatch:
        indices = self.index[torch.from_numpy(request.indices)]
        keys = sample_keys(self.seed, request.epoch, indices, request.repeats)
        rows = indices.repeat(request.repeats)  # (B,)
        images = self.view.apply(self.images.read(rows), keys)  # (B, C, h, w)
        labels = self.images.labels[rows].to(images.device)
        key = batch_key(self.seed, request.epoch, indices)
        batch = Batch(images, labels, keys.to(images.device), key)
        if not self.masks:
            return batch
        height, width = torch.tensor(self.images.size).expand(len(rows), 2).unbind(1)
        boxes = self.view.boxes(keys, height, width)
        masks = zip(self.images.read_masks(rows), boxes, strict=True)
        return MaskedBatch(batch, torch.stack([resize_mask(mask, box, self.view.size) for mask, box in masks]))


class EncodedReader:
    """Batches of images that are decoded one by one.

    Args:
        images: a split.
        index: (n,) int64, which of its images.
        view: how they are cropped.
        in_chans: C.
        seed: of the samples' keys.
        skip_unreadable: replace an image that cannot be decoded by the next one in training, and leave it out in
            evaluation; False: raise an error.
        masks: return `MaskedBatch`es.
    """

    def __init__(
        self,
        images: EncodedImages,
        index: Tensor,
        view: View,
        in_chans: int,
        seed: int,
        *,
        skip_unreadable: bool,
        masks: bool = False,
    ) -> None:
        self.images, self.index, self.view, self.in_chans = images, index, view, in_chans
        self.seed, self.skip_unreadable, self.masks = seed, skip_unreadable, masks

    def __getitem__(self, request: Request) -> Batch | MaskedBatch:
        indices = self.index[torch.from_numpy(request.indices)]
        keys = sample_keys(self.seed, request.epoch, indices, request.repeats)
        images = torch.empty(len(keys), self.in_chans, *self.view.size, dtype=torch.uint8)
        masks = torch.empty(len(keys), *self.view.size, dtype=torch.uint8) if self.masks else None
        found = torch.full((len(indices),), -1)  # the image of the split in each row; -1: none
        for decoded in self._decode_some(request, found):
            sizes = torch.tensor([pixels.shape[:2] for pixels in decoded.values()]).view(-1, 2)
            for first in range(0, len(keys), len(indices)):  # each repeat has its own boxes
                rows = [first + row for row in decoded]
                boxes = self.view.boxes(keys[rows], *sizes.unbind(1))
                for row, box, pixels in zip(rows, boxes, decoded.values(), strict=True):
                    image = torch.from_numpy(pixels).permute(2, 0, 1)  # (C, H, W)
                    images[row] = resize_box(image, box, self.view.size)
                    if masks is not None:
                        masks[row] = self._read_mask(int(found[row]), image.shape[1:], box)
        readable = (found >= 0).repeat(request.repeats)
        if not readable.any():
            name = self.images.name(int(indices[0]))
            raise UserError(f"no image of a whole batch can be read, {name} among them: look at the data")
        if not readable.all():
            images, keys, found = images[readable], keys[readable], found[found >= 0]
            masks = masks if masks is None else masks[readable]
        batch = Batch(
            self.view.move(images, keys),
            self.images.labels[found].repeat(request.repeats),
            keys,
            batch_key(self.seed, request.epoch, indices),
        )
        return batch if masks is None else MaskedBatch(batch, masks)

    def _decode_some(self, request: Request, found: Tensor) -> Iterator[dict[int, Pixels]]:
        """Decode the images of a request, some at a time: row -> pixels; ``found`` gets the index of each image."""
        decoded: dict[int, Pixels] = {}
        for row, position in enumerate(request.indices.tolist()):
            pixels, found[row] = self._decode(position, replace=request.epoch is not None)
            if pixels is not None:
                decoded[row] = pixels
            if sum(held.nbytes for held in decoded.values()) > HELD_DECODED:
                yield decoded
                decoded = {}
        yield decoded

    def _decode(self, position: int, replace: bool) -> tuple[Pixels | None, int]:
        """The image at a position, or the next one that can be read: its pixels, and its index in the split."""
        for step in range(len(self.index) if replace else 1):
            index = int(self.index[(position + step) % len(self.index)])
            if self.images.failed[index]:
                continue
            name = self.images.name(index)
            try:
                with self.images.open(index) as file:
                    return decode(file.read(), self.in_chans, name), index
            except (UnreadableImage, OSError) as error:
                if is_exhausted(error):
                    raise
                if not self.skip_unreadable:
                    raise unreadable_image(name, reason_of(error)) from error
                self.images.failed[index] = True
                log.warning("skipped %s: %s", name, reason_of(error).removeprefix(f"{name}: "))
        return None, -1

    def _read_mask(self, index: int, size: torch.Size, box: Tensor) -> Tensor:
        """The class of each pixel in a box of an image: (4,) int64 -> (h, w) uint8."""
        with self.images.open_mask(index) as file, Image.open(file) as image:
            mask: NDArray[np.generic] = np.array(image)
        if mask.dtype != np.uint8 or mask.shape != tuple(size):
            raise UserError(
                f"the mask of {self.images.name(index)} must be an image of {size[1]} x {size[0]} "
                "pixels, each an 8-bit class index"
            )
        return resize_mask(torch.from_numpy(mask), box, self.view.size)


def unreadable_image(name: str, reason: str) -> UserError:
    """The error for an image that cannot be read."""
    reason = reason.removeprefix(f"{name}: ")
    return UserError(f"{name} cannot be read ({reason}): replace it, or set data.on_error=skip")
