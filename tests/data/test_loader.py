import gc
import multiprocessing
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.data.builders import Tensors, encode, picture, write_classes
from vitmae.data.datamodule import ImageData
from vitmae.data.loader import Loader
from vitmae.data.samplers import ShuffledRequests
from vitmae.data.sources.folder import Folder
from vitmae.errors import UserError


class Echo:
    """A reader that returns what was requested."""

    def __getitem__(self, request):
        return torch.from_numpy(request.indices.copy())


class Refuses:
    def __getitem__(self, request):
        raise UserError("one line")


class Fails:
    def __getitem__(self, request):
        raise ZeroDivisionError


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_they_were_asked_for(workers):
    requests = list(ShuffledRequests(40, 4, seed=0))
    batches = list(Loader(Echo(), ShuffledRequests(40, 4, seed=0), workers, pin_memory=False))
    assert [batch.tolist() for batch in batches] == [request.indices.tolist() for request in requests]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_user_can_mend_stays_one_line(workers):
    with pytest.raises(UserError) as error:
        list(Loader(Refuses(), ShuffledRequests(40, 4, seed=0), workers, pin_memory=False))
    assert str(error.value) == "one line"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_the_project_keeps_its_kind(workers):
    with pytest.raises(ZeroDivisionError):
        list(Loader(Fails(), ShuffledRequests(40, 4, seed=0), workers, pin_memory=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_that_is_left_early_does_not_disturb_the_next(workers):
    loader = Loader(Echo(), ShuffledRequests(40, 4, seed=0), workers, pin_memory=False)
    next(iter(loader))
    expected = ShuffledRequests(40, 4, seed=0)
    next(iter(expected))
    assert [batch.tolist() for batch in loader] == [request.indices.tolist() for request in expected]


def test_the_length_is_the_number_of_batches():
    assert len(Loader(Echo(), ShuffledRequests(40, 4, seed=0), 0, pin_memory=False)) == 10


def leave_loaders_to_the_garbage_collector():
    def run():
        data = ImageData(Tensors(22), img_size=8, in_chans=1, batch_size=4, num_workers=2)
        data.prepare()
        loaders = [data.train_dataloader(), data.val_dataloader()]
        for loader in loaders:
            list(loader)
        loaders.append(loaders)  # a cycle

    gc.collect()
    gc.disable()
    run()
    run()
    assert len(multiprocessing.active_children()) == 8
    started = time.monotonic()
    gc.collect()
    assert time.monotonic() - started < 4
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_stop_at_once_when_their_loader_is_left_to_the_garbage_collector():
    """In a process of its own: what other tests have left is then not collected with it."""
    script = f"from {__name__} import leave_loaders_to_the_garbage_collector as run; run()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- images that turn out to be unreadable while they are being read -------------------------------------------------


@pytest.fixture
def spoilt(tmp_path):
    """A set of which one training file was damaged in the middle: its header and its end look whole."""
    write_classes(tmp_path / "train", {"cat": 6, "dog": 6}, height=150, width=200)
    write_classes(tmp_path / "val", {"cat": 3, "dog": 3}, height=150, width=200)
    for path in (tmp_path / "train" / "dog" / "3.jpg", tmp_path / "val" / "cat" / "1.jpg"):
        data = encode(picture(0, 150, 200))
        path.unlink()
        path.with_suffix(".png").write_bytes(data[:1000] + bytes(200) + data[1200:])
    return tmp_path


def data_of(folder, **settings):
    stats = {"mean": [0.5] * 3, "std": [0.5] * 3}
    data = ImageData(Folder(), path=str(folder), img_size=32, in_chans=3, batch_size=4, stats=stats, **settings)
    data.prepare()
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_damaged_inside_is_named_when_it_is_reached(spoilt, workers):
    with pytest.raises(UserError, match=r"dog/3\.png cannot be read \(.*\): .*data\.on_error=skip") as error:
        list(data_of(spoilt, num_workers=workers).train_dataloader())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_the_next_readable_image_takes_its_place_and_it_is_counted(spoilt, workers):
    data = data_of(spoilt, num_workers=workers, on_error="skip")
    for _ in range(2):
        batches = list(data.train_dataloader())
        assert [len(batch.images) for batch in batches] == [4] * 3
        assert torch.cat([batch.labels for batch in batches]).bincount().tolist() == [6, 6]
        assert data.parts.num_skipped == 1


def test_an_image_that_takes_anothers_place_brings_its_own_label(tmp_path):
    for split in ("train", "val"):
        for name, shade in (("day", 220), ("night", 20)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                image = np.full((150, 200, 3), shade, np.uint8)
                (tmp_path / split / name / f"{number}.png").write_bytes(encode(image))
    data = data_of(tmp_path, num_workers=0, on_error="skip")
    (tmp_path / "train" / "day" / "3.png").write_bytes(b"")  # the next one is of the night
    labels = []
    for batch in data.train_dataloader():
        assert torch.equal(batch.labels, (batch.images.float().mean((1, 2, 3)) < 128).long())
        labels += batch.labels.tolist()
    assert (labels.count(0), labels.count(1)) == (3, 5)


def test_in_evaluation_it_is_left_out(spoilt):
    data = data_of(spoilt, num_workers=0, on_error="skip")
    batches = list(data.val_dataloader())
    assert [len(batch.images) for batch in batches] == [3, 2]
    assert all(len(batch.images) == len(batch.labels) == len(batch.keys) for batch in batches)
    assert data.parts.num_skipped == 1


def test_a_replacement_does_not_depend_on_the_workers(spoilt):
    ours, theirs = (list(data_of(spoilt, num_workers=n, on_error="skip").train_dataloader()) for n in (0, 2))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
