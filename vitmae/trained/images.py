"""Images of any kind -> uint8 tensors of a model's image size, as in evaluation: one by one, or a folder in batches.

Shapes: B images, C channels, h w the model's image size.
"""

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitmae.data.crops import central_boxes, resize_box
from vitmae.data.decode import EXTENSIONS, Pixels, UnreadableImage, decode
from vitmae.data.loader import Loader
from vitmae.data.part_loader import workers_for
from vitmae.data.samplers import OrderedRequests, Request
from vitmae.data.sources.folder import FileImages, Folder
from vitmae.errors import UserError
from vitmae.files import as_line, as_utf8, open_file, reason_of, user_path
from vitmae.machine_faults import is_exhausted
from vitmae.tokens.patches import Size

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
"""A file, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W): uint8, uint16, or floats in [0, 1]."""
ImagesLike = ImageLike | Sequence[ImageLike]
"""One image or several; an array (B, H, W, C) and a tensor (B, C, H, W) are several."""

_ALLOWED = (
    "a path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W), of uint8, uint16 or floats in [0, 1]"
)
_KINDS, _BYTES = (str, Path, Image.Image, np.ndarray, Tensor), (bytes, bytearray, memoryview)
_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # PIL's modes that PNG can hold


class Preprocessing(NamedTuple):
    """The steps before the model, the same as in evaluation: decode an image, crop it at the centre, resize it.

    Attributes:
        img_size: (h, w) in pixels.
        in_chans: C.
        crop_pct: the share of an image's shorter side that the crop keeps.
    """

    img_size: Size
    in_chans: int
    crop_pct: float

    def __call__(self, image: ImageLike, name: str) -> Tensor:
        """One image -> (C, h, w) uint8.

        Raises:
            UserError: the image cannot be read; the message begins with `name`.
        """
        try:
            pixels = _pixels(image, self.in_chans, name)  # (height, width, C)
        except (UnreadableImage, OSError) as error:
            if is_exhausted(error):
                raise
            raise UserError(f"{name} cannot be read ({reason_of(error).removeprefix(f'{name}: ')})") from error
        heights, widths = torch.tensor(pixels.shape[:2])[:, None]
        box = central_boxes(heights, widths, self.img_size, self.crop_pct)[0]
        return resize_box(torch.from_numpy(pixels).permute(2, 0, 1), box, self.img_size)


def named_images(images: ImagesLike) -> list[tuple[str, ImageLike]]:
    """(name, image) of each image; the name is for error messages.

    Raises:
        UserError: the sequence is empty, or an image is something else than `ImageLike`.
    """
    several: Sequence[ImageLike]
    if isinstance(images, np.ndarray | Tensor):
        several = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, _KINDS + _BYTES) or not isinstance(images, Sequence):
        several = [images]  # type: ignore[list-item]
    else:
        several = images
    if not len(several):
        raise UserError("there are no images: give at least one")
    named = []
    for number, image in enumerate(several):
        name = as_line(image) if isinstance(image, str | Path) else f"image {number}"
        if not isinstance(image, _KINDS):
            what = "images are" if image is images else f"{name} is"
            remedy = "; open them with PIL.Image.open(io.BytesIO(…))" if isinstance(image, _BYTES) else ""
            raise UserError(f"{what} of type {type(image).__name__}: must be {_ALLOWED}{remedy}")
        named.append((name, image))
    return named


def _pixels(image: ImageLike, in_chans: int, name: str) -> Pixels:
    """One image -> (height, width, C) uint8; an image in memory is encoded and decoded, so that it equals its file."""
    if isinstance(image, str | Path):
        with open_file(user_path(image)) as content:
            return decode(content.read(), in_chans, name)
    file = BytesIO()
    if isinstance(image, np.ndarray | Tensor):
        array = _as_array(image, name)
        is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
        if array.dtype != np.uint8 or not array.size or not is_picture or in_chans not in (1, 3):
            np.save(file, array, allow_pickle=False)
            return decode(file.getvalue(), in_chans, name)
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    try:
        upright = ImageOps.exif_transpose(image)
        upright.save(file, "PNG" if upright.mode in _IN_PNG else "TIFF", compress_level=0)
    except Exception as error:  # a file that PIL opened but cannot decode, a closed one, an image without pixels
        raise UnreadableImage(reason_of(error)) from error
    return decode(file.getvalue(), in_chans, name)


def _as_array(image: np.ndarray[Any, Any] | Tensor, name: str) -> np.ndarray[Any, Any]:
    """An array, or a tensor (C, H, W) as the array (H, W, C)."""
    if isinstance(image, np.ndarray):
        array = image
    elif image.is_meta or image.layout != torch.strided or image.is_quantized:
        raise UserError(f"{name} is a tensor without dense values: must be {_ALLOWED}")
    else:
        values = image.detach().cpu()
        array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if array.ndim not in (2, 3) or array.dtype.hasobject:
        raise UserError(f"{name} has shape {tuple(image.shape)} and type {image.dtype}: must be {_ALLOWED}")
    return array


class FolderBatch(NamedTuple):
    """A batch of a folder's images.

    Attributes:
        images: (B, C, h, w) uint8.
        numbers: the number of each image's file in the folder.
        unreadable: one line for each file of the batch that cannot be read.
    """

    images: Tensor
    numbers: list[int]
    unreadable: list[str]


class FolderImages:
    """The image files of a folder, preprocessed for a model.

    Args:
        images: a folder, with its subfolders; a glob; a text file with one path per line; or one image.
        preprocess: the model's preprocessing, see `Model.preprocess`.
        skip_unreadable: leave out files that cannot be read; otherwise they are an error.

    Attributes:
        files: the files in a fixed order; those of a folder are sorted by name.

    Raises:
        UserError: no image is found.
    """

    def __init__(self, images: str, preprocess: Preprocessing, skip_unreadable: bool) -> None:
        self.preprocess, self.skip_unreadable = preprocess, skip_unreadable
        self.files = _list_files(images)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        """The path of a file as one line, for messages."""
        return self.files.name(number)

    def path(self, number: int) -> str:
        """The path of a file as text that a table can hold, see `as_utf8`."""
        return as_utf8(self.files.path(number))

    def batches(self, batch_size: int, num_workers: int | Literal["auto"], first: int = 0) -> Iterator[FolderBatch]:
        """Batches of all images from number `first` on, in order.

        Args:
            batch_size: images per batch.
            num_workers: processes that decode; 0: this process; "auto": one per core.
            first: the number of the first image.
        """
        requests = OrderedRequests(len(self) - first, batch_size)
        yield from Loader(_FolderReader(self, first), requests, workers_for(num_workers, 1), pin_memory=False)


class _FolderReader:
    """Makes batches of a folder's images, from number `first` on."""

    def __init__(self, folder: FolderImages, first: int) -> None:
        self.folder, self.first = folder, first

    def __getitem__(self, request: Request) -> FolderBatch:
        folder = self.folder
        images, numbers, unreadable = [], [], []
        for number in (self.first + request.indices).tolist():
            name = folder.name(number)
            try:
                images.append(folder.preprocess(folder.files.path(number), name))
                numbers.append(number)
            except UserError as error:
                if not folder.skip_unreadable:
                    raise UserError(f"{error}: replace it, or set on_error=skip") from error
                unreadable.append(str(error))
        empty = torch.empty(0, folder.preprocess.in_chans, *folder.preprocess.img_size, dtype=torch.uint8)
        return FolderBatch(torch.stack(images) if images else empty, numbers, unreadable)


def _list_files(images: str) -> FileImages:
    if not images:
        raise UserError("images= is empty: name a folder, a glob, a text file with a path per line, or one image")
    path = user_path(images)
    if os.path.isfile(path) and path.suffix.lower() in EXTENSIONS:
        return FileImages([str(path)], [-1], path.parent)
    try:
        listed = Folder().load({"train": [images]}, (0, 0), 0).train
    except UserError as error:
        raise UserError(str(error).replace("data.path=", "images=")) from error
    assert isinstance(listed, FileImages)
    return listed
