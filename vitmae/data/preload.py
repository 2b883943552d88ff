"""Before training: find unreadable images, and decode small sets into memory."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from vitmae.data.cache import digest, remember
from vitmae.data.decode import UnreadableImage, check, decode
from vitmae.data.readers import unreadable_image
from vitmae.data.splits import EncodedImages, Images, MemoryImages
from vitmae.errors import UserError
from vitmae.files import reason_of
from vitmae.machine_faults import is_exhausted

log = logging.getLogger(__name__)

MOST_CHECKED = 20_000  # files that are checked before a run; of larger sets, evenly spread ones
LARGEST_SIDE = 128  # pixels, of images that are decoded into memory
LARGEST_SET = 2 * 2**30  # bytes, of a decoded set


def take_in(images: Images, in_chans: int, skip_unreadable: bool) -> Images:
    """Check a split, and decode it into memory if it is small.

    A set is small if its images have one size of at most 128 x 128 pixels and take at most 2 GiB together.
    Unreadable images are marked in the split's ``failed``.

    Args:
        images: the split.
        in_chans: channels that images must have.
        skip_unreadable: leave out images that cannot be read.

    Raises:
        UserError: an image cannot be read and ``skip_unreadable`` is false, or it has other channels.
    """
    if not isinstance(images, EncodedImages):
        return images
    in_memory = _decode_all(images, in_chans, skip_unreadable)
    if in_memory is not None:
        return in_memory
    sample = np.linspace(0, len(images) - 1, min(len(images), MOST_CHECKED)).astype(int).tolist()
    reasons = remember("unreadable", digest(images.fingerprint(sample)), lambda: _find_unreadable(images, sample))
    if reasons and not skip_unreadable:
        index, reason = reasons[0]
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise unreadable_image(images.name(index) + more, reason)
    for index, reason in reasons:
        images.failed[index] = True
        log.warning("skipped %s: %s", images.name(index), reason)
    return images


def _find_unreadable(images: EncodedImages, sample: list[int]) -> list[tuple[int, str]]:
    """Which images of a sample cannot be read, and why; in threads, because the files may be on a network."""

    def look(index: int) -> str | None:
        try:
            with images.open(index) as file:
                return check(file)
        except OSError as error:
            if is_exhausted(error):
                raise
            return reason_of(error)

    with ThreadPoolExecutor(8) as threads:
        reasons = threads.map(look, sample)
        return [(index, reason) for index, reason in zip(sample, reasons, strict=True) if reason]


def _decode_all(images: EncodedImages, in_chans: int, skip_unreadable: bool) -> MemoryImages | None:
    """The whole split decoded; None if it is not small, or has masks."""
    if images.has_masks:
        return None
    pixels = None
    count, reason = 0, ""
    for index in range(len(images)):
        name = images.name(index)
        try:
            with images.open(index) as file:
                image = decode(file.read(), in_chans, name)  # (H, W, C)
        except (UnreadableImage, OSError) as error:
            if is_exhausted(error):
                raise
            if not skip_unreadable:
                raise unreadable_image(name, reason_of(error)) from error
            images.failed[index] = True
            reason = reason_of(error).removeprefix(f"{name}: ")
            log.warning("skipped %s: %s", name, reason)
            continue
        if pixels is None:
            if max(image.shape[:2]) > LARGEST_SIDE or len(images) * image.size > LARGEST_SET:
                return None
            pixels = np.empty((len(images), *image.transpose(2, 0, 1).shape), np.uint8)
        elif pixels.shape[2:] != image.shape[:2]:
            return None
        pixels[count] = image.transpose(2, 0, 1)
        count += 1
    if pixels is None:
        raise UserError(f"none of {len(images)} images can be read, {name} among them ({reason}): replace them")
    return MemoryImages(torch.from_numpy(pixels[:count]), images.labels[~images.failed])
