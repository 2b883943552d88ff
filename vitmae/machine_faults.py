"""Faults of the machine in one line: what is full, lost or forbidden, where, and the remedy.

They are neither the user's mistake nor a fault of this project, so nobody needs their traceback. What is recognised:

    by number      OSError: disk or quota full, too many open files, no permission, read-only, no memory, bad disk
    by name        MemoryError, torch.OutOfMemoryError
    by its words   what torch raises as a RuntimeError: no memory, no shared memory, a killed data worker
"""

import errno
import getpass
import multiprocessing
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

_WRITING = "while writing "
_NUMBER = re.compile(r"\[Errno (\d+)\]|: [A-Z][\w ]+ \((\d+)\)")  # in the text of Python's errors, and of torch's
_HALF_BATCH = "halve data.batch_size; with trainer.accumulate_grad_batches=2 a step sees as many images as before"
_NO_MEMORY = "memory is full ({memory} in all): lower data.num_workers or data.batch_size"
_NO_FILES = "too many open files (the limit is {files}): raise it with ulimit -n, or lower data.num_workers"
_NO_RIGHT = "the user {user} has no permission{at}: change the owner or the mode, or choose another place"
_BY_NUMBER = {
    errno.ENOSPC: "no space is left on the disk{of}: free some, or choose another place",
    errno.EDQUOT: "the quota of the disk is used up{at}: free some, or choose another place",
    errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EISDIR: "a folder has the name of a file that is to be read or written{at}: move it, or choose another place",
    errno.ENOTDIR: "a file has the name of a folder that is needed{at}: move it, or choose another place",
    errno.EROFS: "the file system is read-only{at}: choose another place",
    errno.ENOMEM: _NO_MEMORY,
    errno.EIO: "the disk cannot be read or written (input/output error){at}: check it, or choose another place",
    errno.ESTALE: "the network file system has lost a file (stale file handle){at}: mount it again",
}
_BY_WORDS = {
    r"killed by signal: Bus error|/torch_\w+>?: No space left": "the shared memory (/dev/shm) is full: enlarge it "
    "(docker run --shm-size=8g), or set data.num_workers=0",
    r"DataLoader worker \(pid": "one of {workers} data workers was killed, as the system does when memory is full "
    "({memory} in all): lower data.num_workers; with 0 the process itself loads the images",
    r"DefaultCPUAllocator: (can't allocate|not enough) memory": "memory is full ({memory} in all): " + _HALF_BATCH,
    r"can't start new thread": "no further thread can be started: raise the limit with ulimit -u, or lower "
    "data.num_workers",
    r"received \d+ items of ancdata": _NO_FILES,  # a worker could not pass its batch on
    r"No usable temporary directory": "no folder for temporary files can be written: free space, or set TMPDIR=FOLDER",
}
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


def note_of_writing(path: Path) -> str:
    """The note that a writer adds to an error (`add_note`), so that the message can name the file."""
    return f"{_WRITING}{path}"


def is_exhausted(error: Exception) -> bool:
    """Whether an error came from the machine, not from the one file that was read: the next file would fail too."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _EXHAUSTED


def explain_machine_fault(error: BaseException) -> str | None:
    """What is wrong with the machine, and the remedy, in one line; None for any other error."""
    links = list(_links(error))
    template = next((found for link in links if (found := _template(link)) is not None), None)
    if template is None:
        return None
    place = next((found for link in links if (found := _place(link)) is not None), None)
    return template.format(
        at=f": {place}" if place else "",
        of=f" of {place}" if place else "",
        user=getpass.getuser(),
        memory=f"{_memory() / 2**30:.1f} GiB",
        workers=len(multiprocessing.active_children()) + 1,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes; an error that was merely handled before is none of them."""
    while error is not None:
        yield error
        # torch.save hides why it cannot write, and OmegaConf why a resolver failed
        hides = "inline_container" in str(error) or type(error).__name__ == "InterpolationResolutionError"
        error = error.__cause__ or (error.__context__ if hides else None)


def _template(error: BaseException) -> str | None:
    """The line for one error."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":  # of torch, whose text tells the device and the sizes
        sizes = re.search(r"Tried to allocate ([\d.]+ \w+).*?total capacity of ([\d.]+ \w+)", text)
        wanted = f" ({sizes[1]} more were needed, of {sizes[2]} in all)" if sizes else ""
        return f"the memory of the GPU is full{wanted}: {_HALF_BATCH}"
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if not isinstance(error, OSError | RuntimeError):
        return None
    for words, template in _BY_WORDS.items():
        if re.search(words, text):
            return template
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (written := _NUMBER.search(text)):  # an error of a data worker arrives as text
        number = int(written[1] or written[2])
    return _BY_NUMBER.get(number) if number is not None else None


def _place(error: BaseException) -> str | None:
    """The file that an error names."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename2 or error.filename)  # of a renamed file, its new name
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_WRITING)]
    return notes[0].removeprefix(_WRITING) if notes else None


def _memory() -> int:
    """The memory of this machine in bytes, or the share of it that a container may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return min(memory, int(allowed)) if allowed.isdigit() else memory
