import os
from stat import S_ISDIR

import pytest

from vitmae.atomic import atomic_replace, atomic_write, remove_parts


def test_a_reader_sees_the_old_content_until_the_new_is_complete(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new" * 100_000)
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" * 100_000


def test_the_file_is_on_disk_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        state = os.fstat(descriptor)
        calls.append("sync folder" if S_ISDIR(state.st_mode) else f"sync {state.st_size} bytes")
        fsync(descriptor)

    def recorded_replace(source, target):
        calls.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert calls == ["sync 3 bytes", "rename to file", "sync folder"]
    calls.clear()
    with atomic_write(tmp_path / "file", durable=False) as file:
        file.write(b"newer")
    assert calls == ["rename to file"]


def test_a_writer_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"ne")
        raise ZeroDivisionError
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_two_processes_that_write_one_file_do_not_share_a_part(tmp_path, monkeypatch):
    with atomic_replace(tmp_path / "file") as mine:
        mine.write_bytes(b"mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with atomic_write(tmp_path / "file") as file:
            file.write(b"theirs")
        assert (tmp_path / "file").read_bytes() == b"theirs"
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    for name in ("last.ckpt", "last.ckpt.tmp123", "notes.tmp", "best.ckpt.tmp7"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last.ckpt", "notes.tmp"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("n" * 255, "n" * 254 + "m"):
        with atomic_write(tmp_path / name) as file:
            file.write(name.encode())
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
