"""Bytes of an image file -> pixels, upright and with a given number of channels.

JPEG is decoded by simplejpeg or torchcodec if one is installed, and all other files by Pillow. .npy arrays and TIFF
files with a page per channel can have any number of channels. Nothing is unpickled.

Shapes: H W height and width of the upright image, C channels.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from vitmae.errors import UserError

Pixels = NDArray[np.uint8]

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".npy"])
_ORIENTATION = 0x0112  # EXIF tag
_NPY = b"\x93NUMPY"
_TAILS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}  # how whole files begin and end


class UnreadableImage(Exception):
    """The file is not an image, is damaged, or is incomplete."""


def decode(data: bytes, in_chans: int, name: str) -> Pixels:
    """Decode an image file: its bytes -> (H, W, C) uint8, upright as its EXIF orientation says.

    For one channel, colours become grey; for three, grey becomes colours; transparent parts become white. 16 bits and
    floats in [0, 1] become 8 bits.

    Args:
        data: the whole file.
        in_chans: C.
        name: of the file, for messages.

    Raises:
        UnreadableImage: the file is damaged, incomplete, or not an image.
        UserError: the image cannot be converted to this number of channels.
    """
    try:
        pixels = None
        if data.startswith(_NPY):
            pixels = _from_array(np.load(BytesIO(data), allow_pickle=False), in_chans, name)
        elif data.startswith(b"\xff\xd8") and in_chans in {1, 3}:
            decoder = jpeg_decoder()
            # if this decoder fails, Pillow tries again, and its message says what is wrong
            with suppress(ValueError, RuntimeError):
                pixels = decoder and decoder(data, in_chans)
        if pixels is None:
            with Image.open(BytesIO(data)) as image:
                pixels = _from_pillow(image, in_chans, name)
                pixels = _upright(pixels, _orientation(image.getexif))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen different kinds on bytes that are not an image
        raise UnreadableImage(f"{name}: {_one_line(error)}") from error
    return np.ascontiguousarray(pixels)


def check(file: BinaryIO) -> str | None:
    """Why an image file cannot be read; None if it can.

    It reads the header and the end of a file. A file without the usual end is decoded, because some complete files have
    more bytes after their end.
    """
    try:
        start = file.read(6)
        file.seek(0)
        if start == _NPY:
            np.load(file, allow_pickle=False)
            return None
        with Image.open(file) as image:
            tail = next((tail for head, tail in _TAILS.items() if start.startswith(head)), None)
            if tail:
                position = file.tell()
                file.seek(-len(tail), 2)
                if file.read() == tail:
                    return None
                file.seek(position)
            image.load()
    except Exception as error:  # as in `decode`
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.sub(r" <_io\.[^>]*>", "", lines[0]) if lines else type(error).__name__  # Pillow names its buffer


@cache
def jpeg_decoder() -> Callable[[bytes, int], Pixels] | None:
    """The fastest JPEG decoder installed: bytes and 1 or 3 channels -> (H, W, C), upright; None: only Pillow's."""
    try:
        import simplejpeg
    except ImportError:
        pass
    else:
        return lambda data, in_chans: _upright(
            simplejpeg.decode_jpeg(data, "GRAY" if in_chans == 1 else "RGB"), _orientation(lambda: _jpeg_tags(data))
        )
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError):  # the last two: libraries of torchcodec are missing
        return None
    return lambda data, in_chans: (  # torchcodec turns images upright
        decode_jpeg(data, mode="GRAY" if in_chans == 1 else "RGB").permute(1, 2, 0).numpy()
    )


def _jpeg_tags(data: bytes) -> Image.Exif:
    """The EXIF tags of a JPEG, found in its first bytes without decoding it."""
    tags = Image.Exif()
    start = data.find(b"Exif\0\0", 0, 65536)
    if start >= 0:
        tags.load(data[start : start + 65536])
    return tags


def _orientation(read_tags: Callable[[], Image.Exif]) -> int:
    """The EXIF orientation, 1 to 8; 1 without tags, or if they are damaged, because the pixels may be intact."""
    try:
        return int(read_tags().get(_ORIENTATION, 1))
    except Exception:  # as many kinds as in `decode`
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation, 1 to 8: (H, W, C), a view."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels


def _from_pillow(image: Image.Image, in_chans: int, name: str) -> Pixels:
    """Any image that Pillow opens -> (H, W, C)."""
    pages = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and 1 < pages == in_chans:
        channels = [np.array(page) for page in ImageSequence.Iterator(image)]
        return _from_array(np.stack(channels, axis=-1), in_chans, name)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits, grey
        grey = np.array(image)
        if grey.dtype == np.int32:
            grey = grey.clip(0, 65535).astype(np.uint16)
        pixels = _to_uint8(grey, name)[..., None]
        return np.repeat(pixels, in_chans, axis=2) if in_chans in {1, 3} else _refuse(name, 1, in_chans)
    transparent = image.mode in {"LA", "PA", "La", "RGBA", "RGBa"} or "transparency" in image.info
    if in_chans == 4 and transparent:
        return np.array(image.convert("RGBA"))
    if in_chans not in {1, 3}:
        return _refuse(name, len(image.getbands()), in_chans)
    if transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if in_chans == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], in_chans)


def _from_array(array: NDArray[np.generic], in_chans: int, name: str) -> Pixels:
    """(H, W), (C, H, W) or (H, W, C) of any usual type -> (H, W, C) uint8."""
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[2] != in_chans:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != in_chans:
        raise UserError(
            f"{name}: an array of shape {array.shape} does not have {in_chans} channels: "
            "set data.in_chans to what it has"
        )
    return _to_uint8(array, name)


def _to_uint8(array: NDArray[np.generic], name: str) -> Pixels:
    """8 bits stay, 16 bits are divided by 257, floats in [0, 1] are multiplied by 255."""
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if array.dtype.newbyteorder("=") == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        values = array.astype(np.float64)
        if values.size and values.min() >= 0 and values.max() <= 1:
            return (values * 255 + 0.5).astype(np.uint8)
    raise UserError(
        f"{name}: values of type {array.dtype} cannot be shown as 8 bits: store uint8, uint16 or floats in [0, 1]"
    )


def _refuse(name: str, has: int, in_chans: int) -> Pixels:
    raise UserError(
        f"{name}: an image of {has} channels cannot give {in_chans}: set data.in_chans=1 or 3, "
        "or store .npy arrays or TIFF files with a page per channel"
    )
