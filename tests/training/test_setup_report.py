"""The table at the start of a run is read back from what was built."""

import warnings

import pytest

from tests.training.runs import built, digits, tiny_objective, trainer
from vitmae.recipe import Recipe
from vitmae.training.averaging import WeightAverage
from vitmae.training.fit import NOT_FOR_USERS
from vitmae.training.setup_report import SetupReport


def test_the_table_shows_the_run_and_every_group_and_is_kept(tmp_path, capsys):
    recipe = Recipe(base_lr=1e-3, layer_decay=0.5, betas=(0.9, 0.95))
    trainer, model = built(recipe, batch_size=512, accumulate_grad_batches=2)
    SetupReport(tmp_path / "effects.txt").on_train_start(trainer, model)
    shown, kept = capsys.readouterr().out, (tmp_path / "effects.txt").read_text()
    for words in (
        "512 = 256 per device x 1 device x 2 accumulated",
        "0.002 = 0.001 x 512 / 256",
        "18 of 24 patches",
        "5 steps from 0",
        "100 optimiser steps, 10 per epoch, 10 epochs",
        "layer 1, decayed",
        "0.0005",
        "32-true",
    ):
        assert words in kept, words
    assert "What took effect" in shown
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    listed = [int(line.split("│")[5].replace(",", "")) for line in kept.splitlines() if line.startswith("│ layer")]
    assert sum(listed) == total


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A run with everything that only a classifier and its images have, and its table."""
    folder = tmp_path_factory.mktemp("run")
    data = digits(rand_augment=5, random_erasing=0.5, repeats=2, hflip=True)
    model = tiny_objective("vit", data, mixup=0.8, cutmix=0.7, label_smoothing=0.1, freeze=1, head_init_std=0.02)
    run = trainer(folder, [SetupReport(folder / "effects.txt"), WeightAverage(0.9)], max_epochs=1)
    with warnings.catch_warnings():
        for message in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", f".*{message}")
        run.fit(model, datamodule=data)
    return (folder / "effects.txt").read_text()


def test_the_table_shows_what_is_done_to_images_labels_and_weights(fine_tuned):
    kept = fine_tuned
    for words in (
        "RandAugment 5, random erasing 0.5, 2 of each image",
        "none, mirrored or not",
        "mixup 0.8 or cutmix 0.7",
        "label smoothing",
        "embeddings and the first 1 of 1 blocks",
        "reads cls, weights of deviation 0.0",
        "decay 0.9",
    ):
        assert words in kept, words


def test_a_parameter_that_the_optimiser_misses_is_a_fault(tmp_path):
    trainer, model = built(Recipe(betas=(0.9, 0.95)))
    trainer.optimizers[0].param_groups[0]["params"].pop()
    with pytest.raises(RuntimeError, match="exactly once"):
        SetupReport(tmp_path / "effects.txt").on_train_start(trainer, model)
