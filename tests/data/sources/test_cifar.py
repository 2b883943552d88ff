from urllib.error import URLError

import numpy as np
import pytest
from torchvision import datasets

from vitmae.data.sources.cifar import CIFAR
from vitmae.errors import UserError


class Published:
    """Stands for torchvision's class: finds its folder or downloads it."""

    base_folder = "cifar-batches"
    classes = ("cat", "dog")
    downloads = 0

    def __init__(self, root, train=True, download=False):
        from pathlib import Path

        folder = Path(root) / self.base_folder
        if download:
            type(self).downloads += 1
            folder.mkdir()
            (folder / "data").write_text("whole")
        if not (folder / "data").exists():
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3)
        self.targets = [0, 1] if train else [1, 0]


@pytest.fixture
def published(monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR10", Published)
    monkeypatch.setattr(Published, "downloads", 0)


def test_it_is_downloaded_once_and_laid_out_for_training(published, tmp_path):
    for _ in range(2):
        splits = CIFAR(10).load(str(tmp_path / "new"), (32, 32), 3)
    assert Published.downloads == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cifar-batches"]
    assert splits.train.images.shape == (2, 3, 32, 32)
    assert splits.train.images[0, :, 0, 1].tolist() == [3, 4, 5]
    assert splits.test.labels.tolist() == [1, 0]
    assert splits.val is None
    assert splits.class_names == ("cat", "dog")


def test_a_damaged_set_says_how_to_mend_it(published, tmp_path):
    (tmp_path / "cifar-batches").mkdir()
    with pytest.raises(UserError, match="remove it") as error:
        CIFAR(10).load(str(tmp_path), (32, 32), 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [10, 100])
def test_without_a_network_one_line_says_what_to_do(monkeypatch, tmp_path, classes):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(UserError, match=rf"CIFAR-{classes} .*no route to host.*data=parquet") as error:
        CIFAR(classes).load(str(tmp_path / "data"), (32, 32), 3)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize(("path", "channels"), [("data", 1), (None, 3), ({"train": "a"}, 3)])
def test_other_channels_or_no_folder_are_refused(path, channels):
    with pytest.raises(UserError, match=r"data\.(in_chans|path)"):
        CIFAR(10).load(path, (32, 32), channels)


def test_there_are_two_of_them():
    with pytest.raises(UserError, match="10 or 100"):
        CIFAR(20)
