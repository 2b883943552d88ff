"""The user's image files: class folders, a flat folder, a glob or a list; with or without splits and masks.

    path/train/<class>/*.jpg, path/val/..., path/test/...     splits with classes (ImageNet's layout)
    path/<class>/**/*.jpg                                     classes
    path/**/*.jpg, "photos/*.png", list.txt                   images without labels, to pre-train on

A folder with images in fewer than two subfolders has no classes. A list has one path per line, relative to the folder
of the list; lines that begin with # are comments.
"""

import codecs
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import torch
from annotated_types import Ge

from vitmae.data.cache import digest
from vitmae.data.decode import EXTENSIONS
from vitmae.data.splits import EncodedImages, Paths, Splits
from vitmae.errors import UserError
from vitmae.files import as_line, match, open_file, reason_of, user_path, walk

_log = logging.getLogger(__name__)

SPLIT_NAMES = {  # names of the folder or file of a split
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class FileImages(EncodedImages):
    """Image files.

    Args:
        paths: of the images.
        labels: one per image; -1 where it has none.
        root: the folder that ``masks`` mirrors.
        masks: a folder of PNG files with the same relative paths as the images in ``root``, each pixel a class index,
            255 for none.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], root: Path, masks: Path | None = None) -> None:
        super().__init__(torch.tensor(labels, dtype=torch.int64))
        # one block of bytes, because every worker would copy the pages of a list of strings
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.root, self.masks = root, masks
        self.has_masks = masks is not None

    def path(self, index: int) -> str:
        """The path, as the system knows it."""
        return os.fsdecode(self.paths[index])

    def name(self, index: int) -> str:
        """The path as one line of text."""
        return as_line(self.path(index))

    def open(self, index: int) -> BinaryIO:
        """The file."""
        return open_file(self.paths[index])

    def open_mask(self, index: int) -> BinaryIO:
        """The PNG file with the same relative path in the folder of masks."""
        if self.masks is None:
            raise UserError(f"{self.name(index)} has no per-pixel classes: set data.source.masks to their folder")
        path = self.masks / os.path.relpath(Path(self.path(index)).with_suffix(".png"), self.root)
        try:
            return open_file(path)
        except FileNotFoundError:
            raise UserError(f"{as_line(path)} is missing: every image needs a mask of the same name") from None
        except OSError as error:
            raise UserError(f"mask {as_line(path)} cannot be read ({reason_of(error)}): replace it") from error

    def fingerprint(self, sample: Sequence[int]) -> str:
        """Of all paths, and of the sizes and times of a sample of the files."""
        return digest(os.path.abspath(self.root), self.paths.tobytes(), [_state(self.paths[i]) for i in sample])


def _state(path: bytes) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


class Folder:
    """Image files below a path, or named by a glob or a list.

    Args:
        masks: a folder of PNG files that mirrors the images' folder (``masks/cats/1.png`` for ``cats/1.jpg``),
            each pixel a class index, 255 for none; only dense probes read it.
        num_mask_classes: how many classes the masks have; None without masks.
    """

    def __init__(self, masks: str | None = None, num_mask_classes: Annotated[int, Ge(2)] | None = None) -> None:
        if (masks is None) != (num_mask_classes is None):
            raise UserError("data.source.masks and data.source.num_mask_classes go together: set both")
        self.masks = user_path(masks) if masks else None
        if masks is not None and not os.path.isdir(self.masks or ""):
            raise UserError(f"data.source.masks={masks} is not a folder: give one with the subfolders of the images")
        self.num_mask_classes = num_mask_classes

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """List the files of each split.

        Raises:
            UserError: the path is missing or has another layout, or a split has a class that training lacks.
        """
        places = split_places(path)
        listed = {split: _list_images(place) for split, place in places.items()}
        names = {name for name, _ in listed["train"]}
        classes = () if None in names or len(names) < 2 else tuple(sorted(name for name in names if name))
        numbers = {name: number for number, name in enumerate(classes)}
        if classes:
            _refuse_empty_classes(Path(str(places["train"])), classes)
        is_folder = isinstance(path, str) and os.path.isdir(user_path(path))
        root = user_path(str(path)) if is_folder else Path(os.curdir)
        images = {}
        for split, files in listed.items():
            strangers = sorted(str(name or "") for name, _ in files if classes and name not in numbers)
            if strangers and not strangers[0]:
                raise UserError(
                    f"{places[split]} has images outside of a class folder, unlike the training images: "
                    "sort them into the same class folders"
                )
            if strangers:
                raise UserError(
                    f"class {strangers[0]} of {places[split]} is not among the training classes: "
                    "add training images of it, or remove it"
                )
            labels = [numbers.get(str(name), -1) for name, _ in files]
            images[split] = FileImages([file for _, file in files], labels, root, self.masks)
        return Splits(
            train=images["train"],
            val=images.get("val"),
            test=images.get("test"),
            class_names=classes or None,
            num_mask_classes=self.num_mask_classes,
        )


def split_places(path: Paths) -> dict[str, str | Sequence[str]]:
    """The path of each split: named one by one, subfolders with a split's name, or training images only.

    Raises:
        UserError: no path is given, or a mapping has other keys than the splits.
    """
    if not path:
        raise UserError("data.path is not set: point it at your images, such as data.path=/my/images")
    if isinstance(path, Mapping):
        if "train" not in path or set(path) - set(SPLIT_NAMES):
            raise UserError(f"data.path={dict(path)} must name train, may name val and test, and nothing else")
        return dict(path)
    if isinstance(path, str):
        folder = user_path(path)
        found = {
            split: next((str(folder / name) for name in names if os.path.isdir(folder / name)), "")
            for split, names in SPLIT_NAMES.items()
        }
        if found["train"]:
            return {split: place for split, place in found.items() if place}
    return {"train": path}


def require_place(place: str | Sequence[str]) -> None:
    """Check that every path of a split is given and exists; a glob is checked when it is matched.

    Raises:
        UserError: a path is empty, missing, not reachable, or a pipe or device.
    """
    for one in [place] if isinstance(place, str) else place:
        path = user_path(one)
        if not one:
            raise UserError("data.path has an empty path: point it at your images")
        if has_magic(one) and not os.path.lexists(path):
            continue
        try:
            os.stat(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL character
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise UserError(f"data.path={as_line(one)} does not exist: point it at your images") from None
            raise UserError(
                f"data.path={as_line(one)} cannot be opened ({reason_of(error)}): point it at your images"
            ) from None
        if not path.is_dir() and not path.is_file():
            raise UserError(
                f"data.path={as_line(one)} is a pipe or a device: give a folder of images, a glob or a list"
            )
    if not place:
        raise UserError("data.path has an empty list: point it at your images")


def _list_images(place: str | Sequence[str]) -> list[tuple[str | None, str]]:
    """The files of one split, each with the name of its class folder, or None."""
    require_place(place)
    if not isinstance(place, str):
        return [(None, file) for one in place for _, file in _list_images(one)]
    path = user_path(place)
    if path.is_dir():
        files = list(_list_folder(path))
        nothing = (
            f"no image below {as_line(path)}: it is empty, or its files are none of {' '.join(sorted(EXTENSIONS))}"
        )
    elif path.suffix.lower() in {".txt", ".lst"} and path.exists():
        files = [(None, file) for file in _read_list(path)]
        nothing = f"data.path={place} lists no image: write one path on each line"
    elif has_magic(place) and not path.exists():
        files = [(None, file) for file in match(str(path), _is_image)]
        nothing = f"data.path={place} matches no image: mind the quotes, and ** for all folders below"
    else:
        raise UserError(f"data.path={as_line(place)} is a file: give a folder of images, a glob or a .txt list")
    if not files:
        raise UserError(nothing)
    return files


def _list_folder(folder: Path) -> Iterator[tuple[str | None, str]]:
    """All images below a folder in the order of their names, each with the name of its subfolder, or None."""
    for below, names in walk(folder, _is_image):
        label = as_line(below.split(os.sep)[0]) if below else None
        directory = os.path.join(folder, below)
        for name in names:
            yield label, os.path.join(directory, name)


def _read_list(path: Path) -> list[str]:
    """The paths in a text file, each once; they may have any bytes that the names of files have."""
    with open_file(path) as file:
        text = file.read().removeprefix(codecs.BOM_UTF8)
    if b"\0" in text:
        raise UserError(
            f"data.path={as_line(path)} holds NUL bytes, so it is no list of paths: "
            "save it as UTF-8, with one path on each line"
        )
    lines = [os.fsdecode(line.strip()) for line in text.splitlines()]
    listed = [str(path.parent / line) for line in lines if line and not line.startswith("#")]
    files = list(dict.fromkeys(listed))
    if len(files) < len(listed):
        _log.warning("%s names %d images more than once: each is read once", as_line(path), len(listed) - len(files))
    return files


def _refuse_empty_classes(folder: Path, classes: Sequence[str]) -> None:
    for entry in sorted(user_path(folder).iterdir()):
        if os.path.isdir(entry) and not entry.name.startswith(".") and as_line(entry.name) not in classes:
            what = "links to a folder that is empty or listed already" if entry.is_symlink() else "holds no image"
            raise UserError(f"class folder {as_line(entry)} {what}: fill it or remove it")


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS and not os.path.basename(path).startswith(".")
