import os
import shutil
import tempfile
from pathlib import Path

import pytest

from vitmae.errors import UserError
from vitmae.files import as_line, as_utf8, match, open_file, user_path, walk


def tree(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def listed(folder, **settings):
    return [os.path.join(below, name) for below, names in walk(folder, lambda name: True, **settings) for name in names]


@pytest.fixture
def as_nobody():
    """A folder that another user may enter, and what makes this process that user; root may read everything."""
    folder = Path(tempfile.mkdtemp(prefix="vitmae-files-"))
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    yield folder, lambda: os.seteuid(65534) if is_root else None
    if is_root:
        os.seteuid(0)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_files_come_in_the_order_of_folders_and_names(tmp_path):
    tree(tmp_path, "b/1", "b/c/2", "b-c/3", "a/9", "z", "b/0", "a/a/a")
    assert listed(tmp_path) == ["z", "a/9", "a/a/a", "b/0", "b/1", "b/c/2", "b-c/3"]


def test_hidden_folders_are_passed_over(tmp_path):
    assert listed(tree(tmp_path, ".x/1", "y/2", "y/.z/3")) == ["y/2"]


@pytest.mark.parametrize("target", [".", "..", "../a", "../b", "deep", "../../tree"])
def test_a_link_into_the_same_tree_adds_nothing(tmp_path, target):
    here = tree(tmp_path / "tree", "a/1", "a/deep/2", "b/3")
    (here / "a" / "link").symlink_to(target)
    (here / "b" / "other").symlink_to("../a")
    assert listed(here) == ["a/1", "a/deep/2", "b/3"]


def test_a_linked_folder_elsewhere_is_listed_once_under_its_first_name(tmp_path):
    tree(tmp_path / "elsewhere", "1", "in/2")
    here = tree(tmp_path / "tree", "z/3")
    for name in ("y", "x"):
        (here / name).symlink_to("../elsewhere")
    assert listed(here) == ["x/1", "x/in/2", "z/3"]


def test_a_folder_can_be_left_out_even_if_a_link_leads_to_it(tmp_path):
    here = tree(tmp_path / "tree", "1")
    tree(tmp_path / "copy", "2")
    (here / "link").symlink_to("../copy")
    assert listed(here, without=tmp_path / "copy") == ["1"]


def test_a_folder_that_may_not_be_listed_is_named_and_not_passed_over(as_nobody):
    folder, become_nobody = as_nobody
    tree(folder, "a/1", "secret/2")
    (folder / "secret").chmod(0)
    become_nobody()
    with pytest.raises(UserError, match=r"secret cannot be listed \(Permission denied\): allow reading it"):
        listed(folder)


def test_a_file_that_may_not_be_read_is_an_error_of_the_system(as_nobody):
    folder, become_nobody = as_nobody
    tree(folder, "1").joinpath("1").chmod(0)
    become_nobody()
    with pytest.raises(OSError, match="Permission denied"):
        open_file(folder / "1")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["1.png"]),
        ("a/*.png", ["a/2.png"]),
        ("**/*.png", ["1.png", "a/2.png", "a/b/3.png"]),
        ("a/**", ["a/2.png", "a/b/3.png"]),
        ("**/b/*", ["a/b/3.png"]),
        ("[ab]/**/3.*", ["a/b/3.png"]),
        ("a/**/**/b/**", ["a/b/3.png"]),
        ("nowhere/**", []),
    ],
)
def test_a_glob_finds_what_the_shell_does_and_a_circle_adds_nothing(tmp_path, monkeypatch, pattern, found):
    tree(tmp_path, "1.png", "a/2.png", "a/b/3.png", "a/.4.png", ".c/5.png")
    (tmp_path / "a" / "circle").symlink_to(".")

    def is_image(name):
        return name.endswith(".png") and not name.startswith(".")

    assert match(f"{tmp_path}/{pattern}", is_image) == [f"{tmp_path}/{path}" for path in found]
    monkeypatch.chdir(tmp_path)
    assert match(pattern, is_image) == found


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a named pipe"):
        open_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a device"):
        open_file("/dev/zero")


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    with open_file(tmp_path / "x") as file:
        assert file.read() == b"abc" * 100_000


def test_a_name_becomes_text_that_can_be_saved_and_one_line():
    name = os.fsdecode(b"caf\xe9\n\xc3\xa9.png")
    assert as_utf8(name) == "caf\\xe9\né.png"
    assert as_line(name) == "caf\\xe9\\né.png"
    as_line(name).encode()


def test_the_home_folder_is_expanded_and_an_unknown_one_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/x") == Path("/home/me/x")
    assert user_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
