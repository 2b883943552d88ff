import logging

import numpy as np
import pytest
import torch

from tests.data.builders import encode, picture, write_classes
from vitmae.data import preload as intake
from vitmae.data.preload import take_in
from vitmae.data.sources.folder import FileImages
from vitmae.data.splits import MemoryImages
from vitmae.errors import UserError


def files_of(folder):
    paths = sorted(str(path) for path in folder.rglob("*.*"))
    return FileImages(paths, range(len(paths)), folder)


@pytest.fixture
def small(tmp_path):
    return write_classes(tmp_path / "small", {"a": 5}, height=32, width=40)


@pytest.fixture
def large(tmp_path):
    return write_classes(tmp_path / "large", {"a": 5}, height=150, width=200)


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_small_images_of_one_size_are_taken_into_memory(small):
    taken = take_in(files_of(small), 3, skip_unreadable=False)
    assert isinstance(taken, MemoryImages)
    assert taken.images.shape == (5, 3, 32, 40)
    assert taken.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.abs(taken.images[2].permute(1, 2, 0).numpy().astype(int) - picture(2, 32, 40)).mean() < 4


@pytest.mark.parametrize("limit", ["LARGEST_SET", "LARGEST_SIDE"])
def test_sets_that_are_too_large_stay_files(small, monkeypatch, limit):
    monkeypatch.setattr(intake, limit, 30)
    images = files_of(small)
    assert take_in(images, 3, skip_unreadable=False) is images


def test_images_of_different_sizes_stay_files(small):
    (small / "b.png").write_bytes(encode(picture(0, 30, 30)))
    images = files_of(small)
    assert take_in(images, 3, skip_unreadable=False) is images


@pytest.mark.parametrize("kind", ["small", "large"])
def test_an_unreadable_image_is_named_with_the_remedy(request, kind):
    folder = request.getfixturevalue(kind)
    cut(folder / "a" / "3.jpg")
    with pytest.raises(UserError, match=r"a/3\.jpg cannot be read \(.+\): .*data\.on_error=skip") as error:
        take_in(files_of(folder), 3, skip_unreadable=False)
    assert "\n" not in str(error.value)


def test_of_several_unreadable_images_the_first_is_named_and_the_others_counted(large):
    cut(large / "a" / "1.jpg")
    cut(large / "a" / "3.jpg")
    with pytest.raises(UserError, match=r"a/1\.jpg, and 1 more"):
        take_in(files_of(large), 3, skip_unreadable=False)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_an_unreadable_image_can_be_skipped_and_is_logged(request, kind, caplog):
    folder = request.getfixturevalue(kind)
    cut(folder / "a" / "3.jpg")
    images = files_of(folder)
    with caplog.at_level(logging.WARNING):
        taken = take_in(images, 3, skip_unreadable=True)
    assert images.failed.tolist() == [False, False, False, True, False]
    assert "a/3.jpg" in caplog.text
    if kind == "small":
        assert taken.labels.tolist() == [0, 1, 2, 4]
        for number, image in zip((0, 1, 2, 4), taken.images, strict=True):
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - picture(number, 32, 40)).mean() < 4


def test_a_set_of_which_nothing_can_be_read_is_refused(small):
    for path in small.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 5 images"):
        take_in(files_of(small), 3, skip_unreadable=True)


def test_of_which_one_side_is_long_is_not_small(tmp_path):
    images = files_of(write_classes(tmp_path, {"a": 3}, height=64, width=200))
    assert take_in(images, 3, skip_unreadable=False) is images


def test_files_are_looked_at_once_until_they_change(large, monkeypatch):
    looked = []
    monkeypatch.setattr(intake, "check", lambda file: looked.append(file.name))
    take_in(files_of(large), 3, skip_unreadable=False)
    assert len(looked) == 5
    take_in(files_of(large), 3, skip_unreadable=False)
    assert len(looked) == 5
    cut(large / "a" / "3.jpg")
    take_in(files_of(large), 3, skip_unreadable=False)
    assert len(looked) == 10


def test_of_a_very_large_set_a_sample_is_looked_at(large, monkeypatch):
    looked = []
    monkeypatch.setattr(intake, "MOST_CHECKED", 3)
    monkeypatch.setattr(intake, "check", lambda file: looked.append(file.name))
    take_in(files_of(large), 3, skip_unreadable=False)
    assert sorted(name[-5:] for name in looked) == [b"0.jpg", b"2.jpg", b"4.jpg"]


def test_a_missing_file_is_unreadable(large):
    images = files_of(large)
    (large / "a" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"a/2\.jpg cannot be read"):
        take_in(images, 3, skip_unreadable=False)


def test_a_home_that_cannot_be_written_to_does_not_stop_the_run(large, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("VITMAE_CACHE", str(blocked))
    images = files_of(large)
    assert take_in(images, 3, skip_unreadable=False) is images


def test_images_that_are_not_files_are_left_as_they_are():
    images = MemoryImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert take_in(images, 1, skip_unreadable=False) is images


def test_channels_that_the_files_do_not_have_are_refused_at_once(large):
    with pytest.raises(UserError, match=r"data\.in_chans"):
        take_in(files_of(large), 12, skip_unreadable=True)


def test_damaged_arrays_are_found(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros((3, 200, 200), np.uint8))
    np.save(tmp_path / "1.npy", np.zeros((3, 200, 200), np.uint8))
    cut(tmp_path / "1.npy")
    with pytest.raises(UserError, match=r"1\.npy"):
        take_in(files_of(tmp_path), 3, skip_unreadable=False)
