"""Write a file so that whatever dies, and whenever, a reader finds the old content or the new, never a part of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES
from pathlib import Path
from typing import IO

from vitmae.errors import UserError

_MARK = ".tmp"


@contextmanager
def atomic_replace(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a name beside `path`; what stands there when the block ends well becomes `path`, else it is removed.

    It lies beside the target so that the renaming stays on one file system. Where it is to be durable, file and folder
    are synced, so that it also survives a loss of power; a million small files would take hours so.
    """
    part = path.with_name(f"{path.name}{_MARK}{os.getpid()}")
    try:
        yield part
        if durable:
            _sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        _sync(path.parent)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends well; if it does not, `path` stays as it was."""
    with atomic_replace(path, durable) as part, open(part, "wb") as file:
        yield file


def make_folder(folder: Path, shown: str) -> None:
    """Make a folder to write into, and those above it; one that is there already will do.

    Args:
        folder: which.
        shown: the setting that asks for it, as in ``out=features``.

    Raises:
        UserError: something else stands in its way, or nothing may be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise UserError(f"{shown} cannot be written ({error.strerror}): give another place") from error


def remove_parts(folder: Path) -> None:
    """Delete what writers that were killed left in a folder."""
    for part in folder.glob(f"*{_MARK}[0-9]*"):
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
