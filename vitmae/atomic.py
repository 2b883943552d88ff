"""Write files atomically: a reader finds the old content or the new content, even if the writer is killed."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES
from pathlib import Path
from typing import IO

from vitmae.errors import UserError
from vitmae.interruption import interruption
from vitmae.machine_faults import note_of_writing

_MARK = ".tmp"
_LONG_NAME = 200  # bytes; file systems allow 255, which must hold the mark too


@contextmanager
def atomic_replace(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; its file becomes `path` when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was. Both are in one folder, because a
    file can be renamed atomically on one file system only.

    Args:
        path: the file to write.
        durable: sync file and folder, so that the file survives a loss of power. This takes hours for a million files.
    """
    name = (
        path.name if len(os.fsencode(path.name)) <= _LONG_NAME else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    )
    part = path.with_name(f"{name}{_MARK}{os.getpid()}")
    try:
        yield part
        with interruption.deferred():
            if durable:
                _sync(part)
            os.replace(part, path)
            if durable:
                _sync(path.parent)
    except Exception as error:
        error.add_note(note_of_writing(path))
        raise
    finally:
        with interruption.deferred():
            part.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends, see `atomic_replace`."""
    with atomic_replace(path, durable) as part, open(part, "wb") as file:
        yield file


def make_folder(folder: Path, setting: str) -> None:
    """Create a folder to write into, with its parents, if it does not exist yet.

    Args:
        folder: its path.
        setting: what the user wrote, for the error message: ``out=features``.

    Raises:
        UserError: a file has that name, or the folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise UserError(f"{setting} cannot be written ({error.strerror}): choose another place") from error


def remove_parts(folder: Path) -> None:
    """Delete the unfinished files of writers that were killed."""
    for part in folder.glob(f"*{_MARK}[0-9]*"):
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
