"""Bytes of an image file -> pixels, upright and with a given number of channels.

JPEG is decoded by simplejpeg or torchcodec if one is installed, and all other files by Pillow. .npy arrays and TIFF
files with a page per channel can have any number of channels. Nothing is unpickled.

A part of a JPEG that is lost, so that the file holds zeros there, is found if its Huffman codes are the usual ones;
other damage inside a JPEG is found by simplejpeg only, because the others decode what they can and report nothing.

Shapes: H W height and width of the upright image, C channels.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from vitmae.errors import UserError
from vitmae.files import reason_of

Pixels = NDArray[np.uint8]

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".npy"])
_ORIENTATION = 0x0112  # EXIF tag
NPY = b"\x93NUMPY"  # the first bytes of an array's file
_PADDING = "extraneous bytes before marker 0xd9"  # what simplejpeg says of bytes before the end of a JPEG
_LOST = bytes(64)
_USUAL_CODES = bytes.fromhex("10 00 02 01 03 03 02 04 03 05 05 04 04 00 00 01 7d 01 02 03 00")
"""The start of a JPEG's usual table of AC codes: with it, zeros mean that all coefficients are -1, as in no image."""
_TAILS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}  # how whole files begin and end


class UnreadableImage(Exception):
    """The file is not an image, is damaged, or is incomplete."""


def decode(data: bytes, in_chans: int, name: str) -> Pixels:
    """Decode an image file: its bytes -> (H, W, C) uint8, upright as its EXIF orientation says.

    For one channel, colours become grey; for three, grey becomes colours; transparent parts become white. 16 bits and
    floats in [0, 1] become 8 bits. Of an animation, the first frame is taken.

    Args:
        data: the whole file.
        in_chans: C.
        name: of the file, for messages.

    Raises:
        UnreadableImage: the file is damaged, incomplete, empty, or not an image, or it holds NaN or infinite values.
        UserError: the image cannot be converted to this number of channels, or its values not to 8 bits.
    """
    try:
        pixels = None
        if not data:
            raise ValueError("the file is empty")
        if data.startswith(NPY):
            pixels = _from_array(_load_array(BytesIO(data)), in_chans, name)
        elif data.startswith(b"\xff\xd8") and in_chans in {1, 3}:
            _refuse_hole(data)
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
        raise UnreadableImage(f"{name}: {reason_of(error)}") from error
    return np.ascontiguousarray(pixels)


def check(file: BinaryIO) -> str | None:
    """Why an image file cannot be read; None if it can.

    It reads the header and the end of a file. A file without the usual end is decoded, because some complete files have
    more bytes after their end.
    """
    try:
        start = file.read(6)
        if not start:
            return "the file is empty"
        file.seek(0)
        if start == NPY:
            _load_array(file)
            return None
        with Image.open(file) as image:
            tail = next((tail for head, tail in _TAILS.items() if start.startswith(head)), None)
            if tail:
                position = file.tell()
                file.seek(-len(tail), 2)
                if file.read() == tail:
                    return None
                file.seek(position)
            load_whole(image)
    except Exception as error:  # as in `decode`
        return reason_of(error)
    return None


def load_whole(image: Image.Image) -> None:
    """Decode an opened image; raises an error of any kind if it is damaged or holds NaN."""
    image.load()
    if image.mode == "F":
        _finite(np.asarray(image))


def _load_array(file: BinaryIO) -> NDArray[np.generic]:
    """The array of a .npy file; raises ValueError if it is incomplete, or has no image's values."""
    try:
        array: NDArray[np.generic] = np.load(file, allow_pickle=False)
    except MemoryError:
        raise ValueError("its header names more values than fit into memory") from None
    if not array.size:
        raise ValueError(f"an array of shape {array.shape} has no pixels")
    return _finite(array)


def _finite(array: NDArray[np.generic]) -> NDArray[np.generic]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"the image holds {'NaN' if np.isnan(array).any() else 'infinite values'}")
    return array


@cache
def jpeg_decoder() -> Callable[[bytes, int], Pixels] | None:
    """The fastest JPEG decoder installed: bytes and 1 or 3 channels -> (H, W, C), upright; None: only Pillow's."""
    try:
        import simplejpeg
    except ImportError:
        pass
    else:
        return lambda data, in_chans: _upright(
            _decode_strictly(simplejpeg, data, "GRAY" if in_chans == 1 else "RGB"),
            _orientation(lambda: _jpeg_tags(data)),
        )
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError):  # the last two: libraries of torchcodec are missing
        return None

    def by_torchcodec(data: bytes, in_chans: int) -> Pixels:
        Image.open(BytesIO(data)).close()  # Pillow refuses sizes that no memory holds
        pixels: Pixels = decode_jpeg(data, mode="GRAY" if in_chans == 1 else "RGB").permute(1, 2, 0).numpy()
        return pixels  # torchcodec turns images upright

    return by_torchcodec


def refuse_damaged_jpeg(data: bytes) -> None:
    """Look for damage inside a JPEG, as `decode` does, at an eighth of its size.

    Raises:
        UnreadableImage: a part of the image is damaged.
    """
    _refuse_hole(data)
    with suppress(ImportError, ValueError):
        import simplejpeg

        _decode_strictly(simplejpeg, data, "GRAY", min_height=1, min_width=1, min_factor=8)


def _refuse_hole(data: bytes) -> None:
    if _LOST not in data:
        return
    start = data.rfind(b"\xff\xc0")  # tags, which may have zeros, lie before it
    hole = data.find(_LOST, start)
    has_ended = data.find(b"\xff\xd9", start, hole) >= 0 or data[hole:].lstrip(b"\0").startswith(b"\xff\xd9")
    if min(start, hole, data.find(_USUAL_CODES, start, hole)) >= 0 and not has_ended:
        raise UnreadableImage("Corrupt JPEG data: a part of the file is zeros")


def _decode_strictly(simplejpeg: Any, data: bytes, colours: str, **reduced: int) -> Pixels:
    """The pixels of a JPEG; raises UnreadableImage if some are lost, ValueError if Pillow must decode or refuse it."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if height * width > 2 * (Image.MAX_IMAGE_PIXELS or height * width):
        raise ValueError("more pixels than Pillow accepts")
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colours, **reduced)
    except ValueError as error:
        reason = str(error)
        if not reason.startswith("Corrupt JPEG data"):
            raise
        scans = data[max(data.rfind(b"\xff\xc0"), data.rfind(b"\xff\xc2")) :]  # without tags, which may have zeros
        if _PADDING in reason and _LOST not in scans.rstrip(b"\xff\xd9").rstrip(b"\0"):
            raise  # some cameras and web sites write bytes before the end
        raise UnreadableImage(reason) from error
    return pixels


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
        return _from_array(_finite(np.stack(channels, axis=-1)), in_chans, name)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits, grey
        grey = _finite(np.array(image))
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
    pixels = _to_uint8(array, name)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and pixels.shape[2] != in_chans:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != in_chans:
        raise UserError(
            f"{name}: an array of shape {array.shape} is no image of {in_chans} channels: "
            f"store (H, W, {in_chans}) or ({in_chans}, H, W), or train with another data.in_chans"
        )
    return pixels


def _to_uint8(array: NDArray[np.generic], name: str) -> Pixels:
    """8 bits stay, 16 bits are divided by 257, floats in [0, 1] are multiplied by 255."""
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if array.dtype.newbyteorder("=") == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        values = array.astype(np.float64)
        lowest, highest = values.min(), values.max()
        if lowest >= 0 and highest <= 1:
            return (values * 255 + 0.5).astype(np.uint8)
        raise UserError(
            f"{name}: its values are between {lowest:.4g} and {highest:.4g}: store uint8, uint16 or floats in [0, 1]"
        )
    raise UserError(f"{name}: its values are of type {array.dtype}: store uint8, uint16 or floats in [0, 1]")


def _refuse(name: str, has: int, in_chans: int) -> Pixels:
    raise UserError(
        f"{name}: an image of {has} channels cannot give {in_chans}: set data.in_chans=1 or 3, "
        "or store .npy arrays or TIFF files with a page per channel"
    )
