"""A user's files: listed without going in circles, opened without waiting for ever, named in one line of text."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from errno import EINVAL
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from stat import S_ISBLK, S_ISCHR, S_ISFIFO, S_ISREG
from typing import BinaryIO

from vitmae.errors import UserError

_log = logging.getLogger(__name__)

_Place = str | bytes | Path


def user_path(text: _Place) -> Path:
    """A path as a user writes it, with ~ for the home folder; unlike `Path.expanduser`, an unknown ~name stays."""
    return Path(os.path.expanduser(os.fsdecode(text)))


def as_utf8(path: _Place) -> str:
    r"""A path as text that can be saved: bytes that are not UTF-8 become escapes such as ``\xff``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def as_line(path: _Place) -> str:
    """A path as one line of text: as `as_utf8`, and line breaks and other control characters become escapes too."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], as_utf8(path))


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in one line; of an error of the system without the path, which messages name."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    text = re.sub(r" <_io\.[^>]*>", "", text)  # Pillow names its buffer
    return " ".join(text.split()) or type(error).__name__


def open_file(path: _Place) -> BinaryIO:
    """Open a file for reading; pipes and devices, which may never end, are refused.

    Raises:
        OSError: it is missing, not readable, or not a regular file.
    """
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except ValueError as error:
        raise OSError(EINVAL, str(error), path) from None  # a path with a NUL character
    mode = os.fstat(file.fileno()).st_mode
    if S_ISREG(mode):
        return file
    file.close()
    kind = "a named pipe" if S_ISFIFO(mode) else "a device" if S_ISCHR(mode) or S_ISBLK(mode) else "not a regular file"
    raise OSError(EINVAL, f"it is {kind}", path)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe waits for its writer otherwise


def walk(folder: Path, accepts: Callable[[str], bool], without: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """The files of a folder and its subfolders, each folder once: (its path below `folder`, its sorted file names).

    A link to a folder is followed, unless that folder is listed already, so links in a circle end. A folder is listed
    under its own path rather than under that of a link. Hidden folders are passed over.

    Args:
        folder: where to start.
        accepts: given a file's name, says whether the file is listed.
        without: a folder that is not listed.

    Raises:
        UserError: a folder cannot be listed.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    seen = set() if without is None else {_identity(without)}
    waiting: list[tuple[str, ...]] = [()]
    links: list[tuple[str, ...]] = []
    repeated: list[tuple[str, ...]] = []
    while waiting or links:
        if not waiting:  # links last: a folder's own path goes before them
            links.sort(reverse=True)
            waiting.append(links.pop())
        below = waiting.pop()
        here = Path(folder, *below)
        try:
            if (identity := _identity(here)) in seen:
                repeated.append(below)
                continue
            seen.add(identity)
            names = []
            with os.scandir(here) as entries:
                for entry in entries:
                    try:
                        is_folder = entry.is_dir()
                    except OSError:  # a link to itself: as a file, it cannot be read, and is named
                        is_folder = False
                    if is_folder:
                        if not entry.name.startswith("."):
                            (links if entry.is_symlink() else waiting).append((*below, entry.name))
                    elif accepts(entry.name):
                        names.append(entry.name)
        except OSError as error:
            raise UserError(
                f"folder {as_line(here)} cannot be listed ({reason_of(error)}): allow reading it, or move it elsewhere"
            ) from error
        found[below] = sorted(names)
    if repeated:
        some = as_line(Path(folder, *repeated[0]))
        _log.warning("%d links to folders that are listed already are not followed, %s among them", len(repeated), some)
    for below in sorted(found):
        yield os.sep.join(below), found[below]


def _identity(folder: Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def match(pattern: str, accepts: Callable[[str], bool]) -> list[str]:
    """The sorted files that a glob names; `**` stands for any number of subfolders, each listed once (see `walk`).

    Args:
        pattern: with ~ already expanded.
        accepts: given a file's name, says whether the file is listed.
    """
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return sorted(path for path in glob(pattern) if accepts(os.path.basename(path)))
    first = parts.index("**")
    start, rest = os.sep.join([*parts[:first], ""]), parts[first:]
    files = []
    for folder in filter(os.path.isdir, glob(start) if has_magic(start) else [start or os.curdir]):
        for below, names in walk(Path(folder), accepts):
            path = below.split(os.sep) if below else []
            prefix = folder if start else ""
            files += [os.path.join(prefix, below, name) for name in names if _fits([*path, name], rest)]
    return sorted(files)


def _fits(path: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a glob."""
    if not pattern:
        return not path
    if pattern[0] == "**" and _fits(path, pattern[1:]):
        return True
    if not path:
        return False
    return _fits(path[1:], pattern if pattern[0] == "**" else pattern[1:]) and fnmatchcase(path[0], pattern[0])
