"""Runs on a machine with a fault: one line, exit code 1, nothing lost, and the run resumes when the fault is mended."""

import errno
import os
import resource
import signal
import subprocess
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from torch.utils.data import get_worker_info

from tests.command_line import run_command
from tests.test_train_command import TINY, same, weights
from tests.training.standin import QUIET
from vitmae import atomic
from vitmae.data.readers import FixedSizeReader
from vitmae.train import main
from vitmae.training import fit as fit_module
from vitmae.training.loggers import read_metrics

pytestmark = QUIET

SAVES = [*TINY, "trainer.max_steps=12", "checkpoint.every_n_steps=2"]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(main, *arguments, capsys=capsys)


def failed(done, said, code=1):
    """The end of a run that failed: one line that says so."""
    assert done.code == code, done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert said in done.err
    return done


def refused(done, said):
    """The end of a command that names a place where nothing can be written."""
    return failed(done, said, code=2)


@pytest.fixture
def small_disk(tmp_path):
    """A disk in memory, its size in KiB set by a function; only root can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if os.geteuid() != 0 or subprocess.run([*mount, "size=1m", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("only root can mount a disk")
    yield disk, lambda options: subprocess.run([*mount, f"remount,{options}", "tmpfs", disk], check=True)
    subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def fsync_fails(folder):
    """The disk is full from the moment on at which a run in the folder has saved a checkpoint."""
    fsync = os.fsync

    def full(descriptor):
        if list(folder.glob("2*/*/checkpoints/last.ckpt")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        yield


def ends_as_if_nothing_had_happened(train, run):
    """The run resumes, and ends with the weights of a run without a fault."""
    assert train(f"ckpt={run}").code == 0
    assert train(*SAVES, "runs=whole").code == 0
    (whole,) = Path("whole").glob("2*/*")
    assert same(weights(run)["state_dict"], weights(whole)["state_dict"])
    assert losses(run) == losses(whole)


def losses(run):
    return [(row["step"], row["val/loss"], row["probe/knn"]) for row in read_metrics(run / "metrics.csv")[1]]


def test_a_full_disk_loses_nothing(train, small_disk):
    disk, remount = small_disk
    remount("size=600k")
    done = failed(train(*SAVES, f"runs={disk}"), f"no space is left on the disk of {disk}")
    assert "last.ckpt" in done.err
    (run,) = disk.glob("2*/*")
    assert f"to resume when the fault is mended: python -m vitmae.train ckpt=disk/{run.relative_to(disk)}" in done.out
    remount("size=10m")
    ends_as_if_nothing_had_happened(train, run)


def test_a_disk_that_is_full_while_a_run_saves_loses_nothing(train, tmp_path):
    with fsync_fails(tmp_path / "runs"):
        failed(train(*SAVES), "no space is left on the disk of ")
    (run,) = (tmp_path / "runs").glob("2*/*")
    assert run.joinpath("checkpoints", "last.ckpt").exists()
    ends_as_if_nothing_had_happened(train, run)


def test_a_read_only_disk_is_named(train, small_disk):
    disk, remount = small_disk
    remount("ro")
    refused(train(*SAVES, f"runs={disk}/runs"), "no directory can be made there (Read-only file system: ")


def test_a_folder_of_another_user_is_named(train, tmp_path):
    assert train(*SAVES, "trainer.max_steps=1").code == 0  # all modules are imported while this user may
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            refused(train(*SAVES, f"runs={locked}"), "no directory can be made there (Permission denied: ")
        finally:
            os.seteuid(0)
    else:
        locked.chmod(0o500)
        refused(train(*SAVES, f"runs={locked}"), "no directory can be made there (Permission denied: ")


@pytest.mark.parametrize("at", [0, 3])
def test_a_killed_data_worker_is_named(train, monkeypatch, at):
    read = FixedSizeReader.__getitem__

    def die(reader, request):
        if get_worker_info() is not None and request.epoch is not None and len(request.indices) and reader.count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        reader.count += 1
        return read(reader, request)

    monkeypatch.setattr(FixedSizeReader, "count", 0, raising=False)
    monkeypatch.setattr(FixedSizeReader, "__getitem__", die)
    done = failed(train(*SAVES, "data.num_workers=2"), "data workers was killed")
    assert "lower data.num_workers" in done.err
    assert "GiB" in done.err


def test_too_many_open_files_are_named(train, monkeypatch):
    fit, (soft, hard) = fit_module.fit, resource.getrlimit(resource.RLIMIT_NOFILE)

    def with_few_files(*given, **others):
        used = set(os.listdir("/proc/self/fd"))
        free = (number for number in count() if str(number) not in used)
        resource.setrlimit(resource.RLIMIT_NOFILE, ([next(free) for _ in range(4)][-1], hard))
        try:
            return fit(*given, **others)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(fit_module, "fit", with_few_files)
    assert "ulimit -n" in failed(train(*SAVES, "data.num_workers=2"), "too many open files").err
