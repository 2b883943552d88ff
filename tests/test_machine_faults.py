"""Faults of the machine are told in one line; faults of this project are not taken for them."""

import errno
import os

import pytest
import torch

from vitmae.atomic import atomic_write
from vitmae.machine_faults import explain_machine_fault, is_exhausted

GPU_FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB of which 3.06 MiB is "
    "free. Including non-PyTorch memory, this process has 79.18 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "said", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "no space is left on the disk of a/b", "free some"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk:", "free some"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "the quota of the disk is used up: a", "free some"),
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "too many open files (the limit is", "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "too many open files", "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "has no permission: a: change", "choose another"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "the file system is read-only: a", "choose another place"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory is full (", "lower data.num_workers"),
        (OSError(errno.EIO, "Input/output error", b"a"), "the disk cannot be read or written", "check it"),
        (OSError(errno.ESTALE, "Stale file handle", "a"), "the network file system has lost a file", "mount it again"),
        (MemoryError(), "memory is full (", "data.batch_size"),
        (torch.OutOfMemoryError(GPU_FULL), "20.00 MiB more were needed, of 79.19 GiB in all", "halve data.batch_size"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "data workers was killed",
            "data.num",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "data workers was killed", "data.num"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
            "the shared memory (/dev/shm) is full",
            "--shm-size",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            "the shared memory (/dev/shm) is full",
            "data.num_workers=0",
        ),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)"
            ),
            "too many open files",
            "ulimit -n",
        ),
        (
            OSError(
                "Caught OSError in DataLoader worker process 0.\nTraceback …\nOSError: [Errno 24] Too many open files"
            ),
            "too many open files",
            "ulimit -n",
        ),
        (RuntimeError("received 0 items of ancdata"), "too many open files", "ulimit -n"),
        (RuntimeError("can't start new thread"), "no further thread", "ulimit -u"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "no folder for temporary", "TMPDIR"),
    ],
)
def test_each_fault_is_named_with_its_remedy(error, said, remedy):
    line = explain_machine_fault(error)
    assert said in line
    assert remedy in line
    assert "\n" not in line
    assert "{" not in line


def test_what_torch_says_when_memory_is_full_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**14)
    assert "halve data.batch_size" in explain_machine_fault(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("No space left on device (28)"),
        KeyError("a"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (28x24)"),
        RuntimeError("expected 28 but got (28)"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
)
def test_other_errors_are_none_of_the_machine(error):
    assert explain_machine_fault(error) is None


def test_an_error_that_was_handled_before_does_not_hide_a_fault_of_this_project():
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "cache")
        except OSError:
            _ = 1 / 0
    except ZeroDivisionError as error:
        assert explain_machine_fault(error) is None


def test_the_cause_of_an_error_counts():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "a.parquet")
        except OSError as full:
            raise ValueError("the table cannot be written") from full
    except ValueError as error:
        assert "no space is left on the disk of a.parquet" in explain_machine_fault(error)


class Full:
    """A file on a disk that is full after some writes."""

    def __init__(self, writes):
        self.writes = writes

    def write(self, data):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    def flush(self):
        pass


def test_a_checkpoint_on_a_full_disk_is_one_of_them_although_torch_hides_it():
    kinds = set()
    for writes in range(12):
        with pytest.raises((OSError, RuntimeError)) as raised:
            torch.save({"weights": torch.zeros(9)}, Full(writes))
        assert "no space is left" in explain_machine_fault(raised.value)
        kinds.add(raised.type)
    assert RuntimeError in kinds


def test_a_writer_names_the_file_that_it_could_not_write(tmp_path):
    with pytest.raises(OSError) as raised, atomic_write(tmp_path / "a"):  # noqa: PT011
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"on the disk of {tmp_path / 'a'}: " in explain_machine_fault(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_not_unreadable_because_the_machine_has_no_files_or_memory_left():
    assert is_exhausted(OSError(errno.EMFILE, ""))
    assert is_exhausted(MemoryError())
    assert not is_exhausted(PermissionError(errno.EACCES, ""))
    assert not is_exhausted(ValueError())
