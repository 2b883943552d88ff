"""Every setting of a run is accounted for: the train command as a user gives it, one step of everything."""

import os
import sys
from pathlib import Path

import pytest

from tests.command_line import SHORT_RUN, run_command
from tests.data.builders import write_classes
from tests.training.standin import QUIET
from vitmae.backbones.timm_vit import TimmViT
from vitmae.config import config_dir
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.digits import Digits
from vitmae.models.mae import MAE
from vitmae.recipe import Recipe
from vitmae.train import main
from vitmae.training.loggers import MetricsFile
from vitmae.training.online import OnlineProbe, Panels

pytestmark = QUIET

TINY = [*SHORT_RUN, "trainer.max_steps=1"]
SMALL = {"shapes": ["data.source.num_train=32", "data.source.num_val=16", "data.source.num_test=16"]}


def that_ignores(base):
    """A class that takes a setting and does nothing with it."""

    def init(self, *args, ignored=None, **settings):
        base.__init__(self, *args, **settings)

    return type(f"Ignoring{base.__name__}", (base,), {"__init__": init, "__module__": __name__})


IGNORING = {
    "model": that_ignores(MAE),
    "model.optimizer": that_ignores(Recipe),
    "backbone": that_ignores(TimmViT),
    "data": that_ignores(ImageData),
    "data.source": that_ignores(Digits),
    "probe": that_ignores(OnlineProbe),
    "panel": that_ignores(Panels),
    "logger.csv": that_ignores(MetricsFile),
}
globals().update({part.__name__: part for part in IGNORING.values()})


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(main, *TINY, *arguments, capsys=capsys)


@pytest.fixture
def photos(tmp_path):
    """A folder with training and validation images."""
    for split in ("train", "val"):
        write_classes(tmp_path / "photos" / split, {"cat": 20, "dog": 20}, height=32, width=32)
    return ["data=folder", "data.path=photos", "data.img_size=32", "backbone=vit_tiny_cifar"]


@pytest.mark.parametrize("data", ["digits", "shapes", "folder"])
@pytest.mark.parametrize("model", [path.stem for path in sorted((config_dir() / "model").glob("[!_]*.yaml"))])
def test_the_defaults_of_every_model_and_set_are_accounted_for(train, photos, model, data):
    words = photos if data == "folder" else [f"data={data}", *SMALL.get(data, ())]
    done = train(f"model={model}", *words)
    assert done.code == 0, done.err


@pytest.mark.parametrize("words", [["trainer=debug"], ["trainer=auto", "trainer.accelerator=cpu"], ["logger=wandb"]])
def test_the_defaults_of_every_trainer_and_logger_are_accounted_for(train, words, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train(*words).code == 0


def test_images_without_labels_leave_the_probe_without_effect_and_say_so_if_it_is_set(train, tmp_path):
    write_classes(tmp_path / "photos", {"all": 40}, height=32, width=32)
    words = ["data=folder", "data.path=photos/all", "data.img_size=32", "backbone=vit_tiny_cifar"]
    done = train(*words)
    assert done.code == 2
    assert "probe.images=50 has no effect: these images have no labels" in done.err


@pytest.mark.parametrize("node", IGNORING)
def test_a_setting_that_a_class_ignores_is_found_in_every_node(train, node):
    part = IGNORING[node]
    word = "+logger.csv._target_" if node == "logger.csv" else f"{node}._target_"
    done = train(f"{word}={__name__}.{part.__name__}", f"+{node}.ignored=3")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert f"{node}.ignored has no effect: {part.__name__} has no attribute ignored" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.val_fraction=0.4"], "data.val_fraction=0.4 has no effect: the set has validation images of its own"),
        (["weights_min_match=0.1"], "weights_min_match=0.1 has no effect: no weights are loaded"),
        (["+foo=bar"], "unknown setting foo"),
        (
            ["+checkpoint.every_n_step=5"],
            "unknown setting checkpoint.every_n_step: did you mean checkpoint.every_n_steps?",
        ),
        (["+trainer.plugins=[]"], "trainer.plugins has no effect: the run sets it itself"),
        (["seed=-1"], "seed=-1: must be ≥ 0"),
        (["weights_min_match=2"], "weights_min_match=2: must be ≥ 0 and ≤ 1"),
        (["compile=maybe"], "compile=maybe: must be true or false"),
    ],
)
def test_a_setting_that_reaches_nothing_here_is_one_line(train, photos, words, said):
    done = train(*photos, *words)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert said in done.err


def test_a_set_that_is_nowhere_refuses_a_path_and_a_set_without_files_what_is_for_files(train):
    assert "data.path=x: digits come with scikit-learn" in train("+data.path=x").err
    assert "data.on_error=skip has no effect: the set has no files" in train("+data.on_error=skip").err


def test_a_resumed_run_is_held_to_what_its_command_line_gives(train, capsys):
    assert train().code == 0
    (run,) = Path("runs").glob("2*/*")
    resumed = [f"ckpt={run}", "trainer.max_steps=2"]
    done = run_command(main, *resumed, "weights_min_match=0.5", capsys=capsys)
    assert (done.code, "a resumed run loads its weights" in done.err) == (2, True)
    done = run_command(main, *resumed, "name=other", capsys=capsys)
    assert (done.code, "name=other has no effect: the run already has the name mae-digits" in done.err) == (2, True)
    assert run_command(main, *resumed, capsys=capsys).code == 0


@pytest.mark.slow
def test_of_two_processes_the_first_speaks(train, tmp_path):
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "vitmae.train", *TINY, "trainer.devices=2", "weights_min_match=0.1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(config_dir().parent)},
    )
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "weights_min_match=0.1 has no effect" in done.stderr
