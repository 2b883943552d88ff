"""Image files that are damaged, odd, or no images at all, and images in memory that no model can take."""

import io
import os
import socket
import struct
import zlib

import numpy as np
import torch
from PIL import Image

import vitmae
from tests.data.builders import encode, picture
from tests.hostile.case import Case
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.folder import Folder

PHOTO = (picture(3, 120, 160).astype(int) + np.random.default_rng(0).integers(-15, 16, (120, 160, 3))).clip(0, 255)
PHOTO = PHOTO.astype(np.uint8)
JPEG, PNG = encode(PHOTO, "JPEG", quality=90), encode(PHOTO)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zeroed(data, start, end):
    start, end = int(len(data) * start), int(len(data) * end)
    return data[:start] + bytes(end - start) + data[end:]


def huge_png(width, height):
    """A PNG that claims a size and has no pixels for it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg():
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + b"\xff\xdc\xff\xdc" + JPEG[start + 4 :]


def nan_in(array):
    array[1, 1] = np.nan
    return array


def float_tiff(value):
    return encode(Image.fromarray(np.full((12, 12), value, np.float32)), "TIFF")


UNREADABLE = {  # file: (its content, why it cannot be read)
    "empty.jpg": (b"", "the file is empty"),
    "empty.npy": (b"", "the file is empty"),
    "text.png": (b"<html>not found</html>", "cannot identify image file"),
    "zip.jpg": (b"PK\x03\x04" + bytes(200), "cannot identify image file"),
    "tar.png": (bytes(1024), "cannot identify image file"),
    "movie.gif": (b"\0\0\0 ftypisom" + bytes(500), "cannot identify image file"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "head.jpg": (JPEG[:20], ""),
    "zeroed.jpg": (zeroed(JPEG, 0.3, 0.6), "Corrupt JPEG data"),
    "sector.jpg": (zeroed(JPEG, 0.5, 0.53), "Corrupt JPEG data"),
    "progressive.jpg": (zeroed(encode(PHOTO, "JPEG", progressive=True), 0.4, 0.5), "Corrupt JPEG data"),
    "zeroed.png": (zeroed(PNG, 0.4, 0.6), ""),
    "cut.png": (PNG[: len(PNG) // 2], ""),
    "cut.webp": (encode(PHOTO, "WEBP")[:300], ""),
    "cut.tif": (encode(PHOTO, "TIFF")[:-5000], ""),
    "cut.bmp": (encode(PHOTO, "BMP")[:-5000], "truncated"),
    "cut.gif": (encode(PHOTO, "GIF")[:60], ""),
    "bomb.jpg": (huge_jpeg(), "decompression bomb"),
    "bomb.png": (huge_png(100_000, 100_000), "decompression bomb"),
    "none.png": (huge_png(0, 0), ""),
    "none.npy": (npy(np.zeros((0, 0, 3), np.uint8)), "has no pixels"),
    "thin.npy": (npy(np.zeros((0, 9, 3), np.float32)), "has no pixels"),
    "nan.npy": (npy(nan_in(np.zeros((9, 9, 3), np.float32))), "the image holds NaN"),
    "inf.npy": (npy(np.full((9, 9, 3), np.inf, np.float16)), "the image holds infinite values"),
    "nan.tif": (float_tiff(np.nan), "the image holds NaN"),
    "cut.npy": (npy(PHOTO)[:-7], ""),
    "head.npy": (npy(PHOTO)[:40], ""),
    "claims.npy": (npy(PHOTO).replace(b"(120, 160, 3)", b"(10000000000,)")[:-1], ""),
    "pickled.npy": (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "pickle"),
}
UNSUITABLE = {  # whole files of another kind of values: an error with on_error=skip too, in training
    "range.npy": (npy(np.full((9, 9, 3), 300.0)), "between 300 and 300"),
    "negative.npy": (npy(np.full((9, 9, 3), -1.0, np.float32)), "[0, 1]"),
    "integers.npy": (npy(np.zeros((9, 9, 3), np.int64)), "type int64"),
    "complex.npy": (npy(np.zeros((9, 9, 3), np.complex64)), "type complex64"),
    "words.npy": (npy(np.full((9, 9, 3), "a")), "type <U1"),
    "one.npy": (npy(np.zeros(9, np.uint8)), "shape (9,)"),
    "four.npy": (npy(np.zeros((2, 9, 9, 3), np.uint8)), "shape (2, 9, 9, 3)"),
    "channels.npy": (npy(np.zeros((9, 9, 5), np.uint8)), "shape (9, 9, 5)"),
    "range.tif": (float_tiff(300.0), "[0, 1]"),
}
ODD = {  # unusual, and still images
    "one.png": encode(PHOTO[:1, :1]),
    "row.png": encode(PHOTO[:1]),
    "column.png": encode(PHOTO[:, :1]),
    "long.png": encode(np.zeros((1, 5000, 3), np.uint8)),
    "one.npy": npy(np.zeros((1, 1), np.uint8)),
    "deep.png": encode(np.full((20, 20), 40_000, np.uint16)),
    "float.tif": float_tiff(0.5),
    "float.npy": npy(np.full((12, 12), 0.5, ">f8")),
    "cmyk.jpg": encode(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"),
    "palette.png": encode(Image.fromarray(PHOTO).quantize(16)),
    "alpha.png": encode(Image.fromarray(PHOTO).convert("RGBA")),
    "grey alpha.png": encode(Image.fromarray(PHOTO).convert("LA")),
    "bits.png": encode(Image.fromarray(PHOTO).convert("1")),
    "moves.gif": encode(Image.new("P", (9, 9)), "GIF", save_all=True, append_images=[Image.new("P", (9, 9), 1)]),
    "moves.webp": encode(Image.fromarray(PHOTO), "WEBP", save_all=True, append_images=[Image.new("RGB", (160, 120))]),
    "LOUD.JPG": JPEG,
    "wrong suffix.png": JPEG,
    "tail.jpg": JPEG + b"a phone's notes",
    "padded.jpg": JPEG[:-2] + bytes(100) + JPEG[-2:],
}


def write(name, content):
    def files(folder):
        (folder / "bad").mkdir()
        (folder / "bad" / name).write_bytes(content)

    return files


def write_all(contents):
    def files(folder):
        (folder / "bad").mkdir()
        (folder / "bad" / "good.png").write_bytes(PNG)
        for name, content in contents.items():
            (folder / "bad" / name).write_bytes(content)

    return files


def beside_good_images(name, content):
    """Two classes, of which one has this file too."""

    def files(folder):
        (folder / "photos" / "a" / name).write_bytes(content)

    return files


def no_file(name, make):
    def files(folder):
        (folder / "bad").mkdir()
        make(folder / "bad" / name)

    return files


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


NO_FILES = {  # names of images that are no files
    "pipe.jpg": (os.mkfifo, "named pipe"),
    "socket.jpg": (make_socket, "No such device or address"),
    "zero.jpg": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "nothing.jpg": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "itself.jpg": (lambda path: path.symlink_to(path), "symbolic links"),
}
EMBED = ("ckpt={run}", "images=bad", "num_workers=0")
PREPARE = ("src=bad", "dst=copy", "num_workers=1")
BEGUN = ("features.parquet.parts",)
LEFT_OUT = {name: content for name, (content, _) in (UNREADABLE | UNSUITABLE).items()}


def in_training(name, content, why):
    """A set of two classes, of which one has this file too; it is looked at before a training starts."""

    def prepare(folder, run):
        ImageData(Folder(), path="photos", img_size=16, in_chans=3, batch_size=1, num_workers=0).prepare()

    return Case(f"python: data with {name}", prepare, files=beside_good_images(name, content), says=(name, why))


def in_memory(id, make, *says, method="encode"):
    """A call of a trained model with a value that is no image."""

    def call(folder, run):
        return getattr(vitmae.load(run, device="cpu"), method)(make())

    return Case(f"python: {method} {id}", call, says=says)


def broken_pil():
    return Image.open(io.BytesIO(JPEG[: len(JPEG) // 2]))


def closed_pil():
    image = Image.open(io.BytesIO(PNG))
    image.close()
    return image


CASES = [
    *(
        Case(
            f"embed: {name}",
            "embed",
            EMBED,
            write(name, content),
            says=(name, "cannot be read", why, "on_error=skip"),
            writes=BEGUN,
        )
        for name, (content, why) in UNREADABLE.items()
    ),
    *(
        Case(f"embed: {name}", "embed", EMBED, write(name, content), says=(name, why, "on_error=skip"), writes=BEGUN)
        for name, (content, why) in UNSUITABLE.items()
    ),
    *(
        Case(f"embed: {name}", "embed", EMBED, no_file(name, make), says=(name, "cannot be read", why), writes=BEGUN)
        for name, (make, why) in NO_FILES.items()
    ),
    *(in_training(name, content, why) for name, (content, why) in (UNREADABLE | UNSUITABLE).items()),
    Case(
        "embed: all unreadable images are left out",
        "embed",
        (*EMBED, "on_error=skip"),
        write_all(LEFT_OUT),
        ends=0,
        says=(f"1 vectors of width 16, {len(LEFT_OUT)} images left out", "the image holds NaN"),
        writes=("features.parquet",),
    ),
    Case(
        "embed: odd images are images",
        "embed",
        EMBED,
        write_all(ODD),
        ends=0,
        says=(f"{len(ODD) + 1} vectors of width 16, 0 images left out",),
        writes=("features.parquet",),
    ),
    Case(
        "reconstruct: odd images are images",
        "reconstruct",
        ("ckpt={run}", "images=bad", "num_workers=0", "panels=1"),
        write_all(ODD),
        ends=0,
        says=(f"{len(ODD) + 1} images",),
        writes=("reconstructions",),
    ),
    Case(
        "prepare: odd images are images",
        "prepare",
        (*PREPARE, "short_side=8"),
        write_all(ODD),
        ends=0,
        says=("shrunk", "copied"),
        writes=("copy",),
    ),
    Case(
        "prepare: unreadable images are left out",
        "prepare",
        (*PREPARE, "short_side=8"),
        write_all({name: content for name, (content, _) in UNREADABLE.items()}),
        ends=0,
        says=(f"{len(UNREADABLE)} left out, 1 shrunk",),
        writes=("copy",),
    ),
    *(
        Case(
            f"prepare: {name}",
            "prepare",
            PREPARE,
            no_file(name, make),
            ends=0,
            says=("1 left out", name, why),
            writes=("copy",),
        )
        for name, (make, why) in NO_FILES.items()
    ),
    in_memory("nothing", lambda: None, "NoneType", "must be a path"),
    in_memory("no images", list, "no images", "at least one"),
    in_memory("an empty batch", lambda: torch.zeros(0, 3, 8, 8), "no images"),
    in_memory("bytes", lambda: JPEG, "bytes", "PIL.Image.open"),
    in_memory("a list of bytes", lambda: [JPEG], "bytes", "PIL.Image.open"),
    in_memory("a number", lambda: 5, "int", "must be a path"),
    in_memory("numbers", lambda: [1, 2], "int", "must be a path"),
    in_memory("a mapping", dict, "dict", "must be a path"),
    in_memory("a generator", lambda: (image for image in [PHOTO]), "generator", "must be a path"),
    in_memory("an array without pixels", lambda: np.zeros((0, 0, 3), np.uint8), "has no pixels"),
    in_memory("a tensor without pixels", lambda: torch.zeros(3, 0, 8), "has no pixels"),
    in_memory("an image without pixels", lambda: Image.new("RGB", (0, 0)), "cannot be read"),
    in_memory("NaN", lambda: np.full((9, 9), np.nan, np.float32), "the image holds NaN"),
    in_memory("NaN in a tensor", lambda: torch.full((3, 9, 9), torch.nan), "the image holds NaN"),
    in_memory("one of several with NaN", lambda: [PHOTO, np.full((9, 9), np.nan)], "image 1", "NaN"),
    in_memory("infinite values", lambda: torch.full((3, 9, 9), torch.inf), "infinite values"),
    in_memory("values up to 255", lambda: np.full((9, 9), 255.0), "between 255 and 255", "[0, 1]"),
    in_memory("whole numbers", lambda: torch.zeros(3, 9, 9, dtype=torch.int64), "int64", "uint8"),
    in_memory("objects", lambda: np.array([[None]]), "type object"),
    in_memory("a scalar", lambda: np.float32(0), "float32", "must be a path"),
    in_memory("an array of no dimension", lambda: np.array(0.5), "shape ()"),
    in_memory("a row", lambda: torch.zeros(9), "shape (9,)"),
    in_memory("five dimensions", lambda: torch.zeros(1, 1, 3, 9, 9), "shape (1, 1, 3, 9, 9)"),
    in_memory("five channels", lambda: np.zeros((9, 9, 5), np.uint8), "channels"),
    in_memory("a tensor without memory", lambda: torch.zeros(3, 9, 9, device="meta"), "without dense values"),
    in_memory("a sparse tensor", lambda: torch.zeros(9, 9).to_sparse(), "without dense values"),
    in_memory("an image cut short", broken_pil, "truncated"),
    in_memory("an image that is closed", closed_pil, "cannot be read"),
    in_memory("a missing file", lambda: "nowhere.jpg", "nowhere.jpg", "No such file"),
    in_memory("a folder", lambda: "photos", "photos cannot be read", "directory"),
    in_memory("a path with NUL", lambda: "a\0b.jpg", "a\\x00b.jpg", "null byte"),
    in_memory("a path that is too long", lambda: "a" * 5000 + ".jpg", "too long"),
    in_memory("the home of nobody", lambda: "~nobody-of-that-name/x.jpg", "No such file"),
    in_memory("images of a model without a classifier", lambda: PHOTO, "holds no classifier", method="predict"),
    in_memory("nothing", lambda: None, "NoneType", method="reconstruct"),
]
