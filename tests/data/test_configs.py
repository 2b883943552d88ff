"""The shipped settings of every set fit the code, and say what they are."""

import inspect

import pytest
from hydra.utils import get_class, instantiate

from tests.conf_files import load_choice
from vitmae.config import config_dir
from vitmae.data.datamodule import ImageData

FILES = sorted((config_dir() / "data").glob("[!_]*.yaml"))


def settings_of(file):
    config = load_choice("data", file.stem)
    config.seed = 3
    return config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_setting_is_one_of_the_constructor_and_has_its_value_written_out(file):
    data = settings_of(file).data
    known = set(inspect.signature(ImageData).parameters)
    optional = {"path", "on_error", "val_fraction"}  # of sets that lie somewhere, have files, have no such split
    assert set(data) - {"_target_"} <= known
    assert known - optional <= set(data)
    source = inspect.signature(get_class(data.source._target_)).parameters
    assert set(data.source) - {"_target_"} == set(source)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_set_can_be_built_from_its_file(file):
    data = instantiate(settings_of(file).data)
    assert isinstance(data, ImageData)
    assert data.seed == 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_says_what_the_set_is_and_where_it_is_looked_for(file):
    first, *lines = file.read_text().splitlines()
    assert first == "# @package _global_"
    header = " ".join(line for line in lines[:3] if line.startswith("#"))
    assert "data.path" in header or "nothing to download" in header


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_the_sets_that_need_no_file_are_ready(name):
    data = instantiate(settings_of(next(file for file in FILES if file.stem == name)).data)
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (data.batch_size, data.in_chans, *data.img_size)
    assert data.num_classes == {"digits": 10, "shapes": 8}[name]
    if name == "digits":
        header = next(file for file in FILES if file.stem == name).read_text()
        assert f"{data.num_train:,} train, {data.num_val} validate" in header
