"""A folder of images -> the same folder with smaller images, which load several times as fast.

    list -> decode, turn upright -> resize the short side -> encode -> rename into place

Each file gets its final name only when it is complete, so a stopped run resumes with the missing files. Originals are
not changed.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from errno import EACCES, EAGAIN
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from vitmae.atomic import atomic_write, make_folder, remove_parts
from vitmae.data.decode import EXTENSIONS, NPY, UnreadableImage, check, load_whole, refuse_damaged_jpeg
from vitmae.errors import UserError
from vitmae.files import as_line, open_file, reason_of, walk

ABOUT, LEFT_OUT = "prepared.json", "left_out.txt"

Outcome = Literal["shrunk", "copied", "there already", "left out"]

_MODES = frozenset(["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])  # 8 bits per channel
_INDEXED = {"P": ("RGB", "RGBA"), "1": ("L", "LA")}  # resized in these modes: without, with transparency
_FORMATS = frozenset(["JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
_GAP = 3.0  # a JPEG is decoded at 1/2, 1/4 or 1/8 if the result has at least so many times the final size


class Shrinking(NamedTuple):
    """How images are made smaller.

    Attributes:
        short_side: pixels of the shorter side; smaller images stay as they are.
        quality: of JPEG and WebP files, 1 to 100.
        nearest: take the nearest pixel and keep palettes, for masks whose pixels are classes; otherwise Lanczos.
    """

    short_side: int
    quality: int = 90
    nearest: bool = False


class Tally(NamedTuple):
    """The result for a folder.

    Attributes:
        counts: files by outcome.
        left_out: (path below the source, reason) of each file that is not in the copy.
    """

    counts: Counter[Outcome]
    left_out: list[tuple[str, str]]


def shrink_folder(
    source: Path,
    target: Path,
    how: Shrinking,
    workers: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Tally:
    """Make a smaller copy of a folder of images: the same tree and names.

    JPEG, PNG, WebP, BMP, PPM and TIFF images with 8 bits per channel are resized, turned upright by their EXIF
    orientation (other EXIF data is removed), and saved with their colour profile. Small images, images with several
    frames or more bits, and .npy arrays are copied as they are. Files that are not images or cannot be read are left
    out, and listed in ``left_out.txt``.

    Args:
        source: the images; not changed.
        target: the copy; a new folder, or one from an earlier run with the same settings.
        how: the settings.
        workers: threads.
        report: called after each file with the number of files done and of all files.

    Raises:
        UserError: one folder is inside the other, the copy has other settings, another process writes to it, or the
            disk is full.
    """
    _refuse_nesting(source, target)
    with _claim(target, source, how):
        files = [
            os.path.join(below, name) for below, names in walk(source, lambda name: True, target) for name in names
        ]
        counts: Counter[Outcome] = Counter()
        left_out = []
        with ThreadPoolExecutor(workers) as threads:
            try:
                jobs = ((name, threads.submit, source / name, target / name) for name in files)
                for name, future in _in_flight(jobs, how, 4 * workers):
                    outcome, reason = future.result()
                    counts[outcome] += 1
                    if reason:
                        left_out.append((name, reason))
                    report(counts.total(), len(files))
            except BaseException as error:  # Ctrl-C: started files are finished, the others are left to the next run
                threads.shutdown(cancel_futures=True)
                if isinstance(error, OSError):
                    raise UserError(
                        f"dst={target} cannot be written ({reason_of(error)}): "
                        "mend that, and run the same command again"
                    ) from error
                raise
        left_out.sort()
        with atomic_write(target / LEFT_OUT) as file:
            file.writelines(f"{as_line(name)}\t{reason}\n".encode() for name, reason in left_out)
    return Tally(counts, left_out)


Job = tuple[str, Callable[..., Future[tuple[Outcome, str]]], Path, Path]


def _in_flight(jobs: Iterable[Job], how: Shrinking, most: int) -> Iterator[tuple[str, Future[tuple[Outcome, str]]]]:
    """Run at most ``most`` jobs at once, and yield each when it is done, so that a million jobs take little memory."""
    jobs = iter(jobs)
    running: dict[Future[tuple[Outcome, str]], str] = {}
    while True:
        for name, submit, original, copy in islice(jobs, most - len(running)):
            running[submit(shrink_file, original, copy, how)] = name
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future


def shrink_file(original: Path, copy: Path, how: Shrinking) -> tuple[Outcome, str]:
    """Make the copy of one file; return the outcome, and the reason if the file is left out."""
    if original.suffix.lower() not in EXTENSIONS or original.name.startswith("."):
        return "left out", "no image"
    before = os.stat(copy) if copy.exists() else None
    try:
        if before is not None and before.st_size:  # a crash of the machine may leave an empty file
            if os.stat(original).st_mtime_ns > before.st_mtime_ns:
                return "left out", "changed since it was prepared: remove its copy to prepare it again"
            return "there already", ""
        with open_file(original) as file:
            content = file.read()
        smaller = _smaller_file(content, how)
    except Exception as error:  # Pillow raises a dozen different kinds on bytes that are not an image
        return "left out", reason_of(error)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy, durable=False) as file:
        file.write(smaller or content)
    return "shrunk" if smaller else "copied", ""


def _smaller_file(content: bytes, how: Shrinking) -> bytes | None:
    """The bytes of the smaller image; None: copy the original. Raises an exception if the image cannot be read."""
    file = BytesIO(content)
    if content.startswith(NPY):
        if reason := check(file):
            raise UnreadableImage(reason)
        return None
    with Image.open(file) as image:
        if image.format in ("JPEG", "MPO"):
            refuse_damaged_jpeg(content)  # damage would become a part of the copy, where nothing can find it
        if _can_shrink(image, how):
            return _encode(shrink(image, how), str(image.format), how.quality)
        load_whole(image)  # a damaged file would otherwise fail in training
    return None


def shrink(image: Image.Image, how: Shrinking) -> Image.Image:
    """Resize an opened image to a short side of ``how.short_side``, and turn it upright; the long side is rounded."""
    profile, tags = image.info.get("icc_profile"), image.getexif()
    scale = how.short_side / min(image.size)
    width, height = (max(how.short_side, round(side * scale)) for side in image.size)
    if how.nearest:
        smaller = image.resize((width, height), Image.Resampling.NEAREST)
    else:
        image.draft(None, (int(width * _GAP), int(height * _GAP)))
        if image.mode in _INDEXED:
            image = image.convert(_INDEXED[image.mode][int("transparency" in image.info)])
        smaller = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_GAP)
    smaller.getexif().update(tags)
    smaller = ImageOps.exif_transpose(smaller)  # after resizing, because turning a large image takes longer
    smaller.info["icc_profile"] = profile
    return smaller


def _can_shrink(image: Image.Image, how: Shrinking) -> bool:
    """Whether the image is larger than ``how.short_side``, and loses nothing but pixels when it is resized."""
    # the other frames of a phone's MPO are previews
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    is_known = image.format in _FORMATS and (image.mode in _MODES or image.mode in _INDEXED)
    return is_known and frames == 1 and min(image.size) > how.short_side


def _encode(image: Image.Image, image_format: str, quality: int) -> bytes:
    """Encode an image in the format of its original, with its colour profile and no other tags."""
    settings: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
    if image_format in ("JPEG", "MPO", "WEBP"):
        settings["quality"] = quality
    elif image_format == "TIFF":
        settings["compression"] = "tiff_lzw"
    file = BytesIO()
    image.save(file, "JPEG" if image_format == "MPO" else image_format, **settings)
    return file.getvalue()


def _refuse_nesting(source: Path, target: Path) -> None:
    if not os.path.isdir(source):
        raise UserError(f"src={source} is not a folder: point it at the folder of your images")
    inside, outside = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UserError(f"dst={target} and src={source} must not contain each other: put the copy beside the originals")


@contextmanager
def _claim(target: Path, source: Path, how: Shrinking) -> Iterator[None]:
    """Start a copy, or resume one with the same settings, and lock it against other processes."""
    about = {"src": as_line(os.path.realpath(source)), **how._asdict()}
    make_folder(target, f"dst={target}")
    file = target / ABOUT
    if file.exists():
        try:
            before = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"{file} is damaged: remove it with {target}, or give another dst=") from error
        if other := [name for name, value in about.items() if before.get(name) != value]:
            raise UserError(f"dst={target} was prepared with {other[0]}={before.get(other[0])}: give another dst=")
    elif any(target.iterdir()):
        raise UserError(f"dst={target} holds other files: give a new folder")
    else:
        with atomic_write(file) as handle:
            handle.write((json.dumps(about, indent=2) + "\n").encode())
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (EACCES, EAGAIN):
                raise UserError(f"dst={target} cannot be locked ({reason_of(error)}): choose another place") from error
            raise UserError(f"dst={target}: another process is preparing it: wait for it") from None
        for folder, _, _ in os.walk(target):
            remove_parts(Path(folder))
        yield
