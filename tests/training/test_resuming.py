"""A run may resume with another batch size, accumulation or length: each image comes when it would have come."""

import logging

import pytest
import torch
from lightning import Callback

from tests.data.builders import Tensors
from tests.data.test_resume import BATCHES, EPOCHS, every_step, memory, train
from tests.training.runs import digits, tiny_objective
from tests.training.standin import QUIET, SETTINGS, new_run, new_trainer
from vitmae.data.datamodule import ImageData
from vitmae.errors import UserError
from vitmae.recipe import Recipe
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.training.averaging import WeightAverage
from vitmae.training.checkpoints import Checkpoints
from vitmae.training.resuming import Resuming

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed"),
]


def images(batch_size, **settings):
    settings = {"num_workers": 0, "crop": "pad"} | settings
    return ImageData(Tensors(22), img_size=8, in_chans=1, batch_size=batch_size, **settings)


def keys(seen):
    """Of all images, in the order of training."""
    return [key for _, *batch in seen for key in batch]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every image of 3 epochs in its order (an epoch has 22 images and uses 20), and a checkpoint of each step."""
    folder = tmp_path_factory.mktemp("whole")
    seen = train(memory(), folder, callbacks=[every_step(folder)])
    order = []
    for epoch in range(EPOCHS):
        data = images(22, drop_last=False)
        data.prepare()
        data.train_dataloader()
        data.requests.position = lambda epoch=epoch: (epoch, 0)
        order += [
            data.loaders and key
            for batch in data._loader(data.parts.train, data.requests, training=True)
            for key in batch.keys.tolist()
        ]
    assert keys(seen) == [order[epoch * 22 + i] for epoch in range(EPOCHS) for i in range(20)]
    return order, folder


def resume(tmp_path, data, ckpt, callbacks=(), **settings):
    run = new_run(tmp_path / "run")
    return train(data, tmp_path, ckpt=ckpt, callbacks=[Resuming(run, lambda: None), *callbacks], **settings)


@pytest.mark.parametrize("step", range(1, EPOCHS * BATCHES))
def test_an_unchanged_run_is_resumed_as_it_was(tmp_path, whole, step):
    order, folder = whole
    after = resume(tmp_path, memory(), folder / f"step={step}.ckpt")
    assert keys(after) == [order[epoch * 22 + i] for epoch in range(EPOCHS) for i in range(20)][step * 4 :]


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 9, 10, 13])
@pytest.mark.parametrize("batch_size", [2, 3, 5, 8, 11, 22])
def test_another_batch_size_continues_with_the_image_that_comes_next(tmp_path, whole, step, batch_size):
    order, folder = whole
    epoch, batch = divmod(step, BATCHES)
    done = epoch * 22 + batch * 4
    after = resume(tmp_path, images(batch_size), folder / f"step={step}.ckpt")
    left = (
        epoch + 1
    ) * 22 - done  # of this epoch; what does not fill a batch is left out, but at least one batch is made
    rest = max(left // batch_size * batch_size, min(left, batch_size))
    expected = order[done : done + rest]
    for later in range(epoch + 1, EPOCHS):
        expected += order[later * 22 : later * 22 + 22 // batch_size * batch_size]
    assert keys(after) == expected


@pytest.mark.parametrize("first", [1, 6])
def test_a_run_with_another_batch_size_is_resumed_again_exactly(tmp_path, whole, first):
    _, folder = whole
    again = every_step(tmp_path / "again")
    once = resume(tmp_path, images(3), folder / f"step={first}.ckpt", [again])
    saved = sorted((tmp_path / "again").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    assert len(saved) == len(once)
    for done in (1, 2, 4, len(once) - 1):
        assert resume(tmp_path / str(done), images(3), saved[done - 1]) == once[done:]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_another_accumulation_trains_on_the_same_images(tmp_path, before, after):
    settings = {"accumulate_grad_batches": before}
    seen = train(memory(), tmp_path, callbacks=[every_step(tmp_path / "a")], **settings)
    done = 3 * before if before == 1 else 5 + before  # batches after 3 steps... of 2, 2 and 1, and of 2
    step = 3 if before == 1 else 4
    assert (
        resume(tmp_path, memory(), tmp_path / "a" / f"step={step}.ckpt", accumulate_grad_batches=after) == seen[done:]
    )


class Rates(Callback):
    def __init__(self):
        self.rates, self.steps = [], []

    def on_train_batch_start(self, trainer, *rest):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.steps.append(trainer.global_step)


def rates(run, batch_size, ckpt=None, base_lr=1e-2, average=(), **settings):
    """The learning rate of each batch, and the objective; digits have 1,293 images."""
    data, seen = digits(batch_size=batch_size), Rates()
    objective = tiny_objective("mae", data)
    objective.optimizer = Recipe(base_lr=base_lr, betas=(0.9, 0.95))
    checkpoints = Checkpoints(run, objective.monitor, 2, SETTINGS)
    callbacks = [*average, Resuming(run, lambda: None), seen]
    settings = {"max_epochs": 3, "limit_val_batches": 0} | settings
    new_trainer(run, checkpoints, *callbacks, **settings).fit(objective, datamodule=data, ckpt_path=ckpt)
    return seen, objective


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == self.step


def stopped(tmp_path, step, batch_size=256, **settings):
    run = new_run(tmp_path / "run")
    rates(run, batch_size, average=[Stop(step), *settings.pop("average", ())], **settings)
    return run


def test_a_changed_learning_rate_wins_over_the_saved_one_at_the_same_step(tmp_path):
    before, _ = rates(new_run(tmp_path / "whole"), 256)
    after, _ = rates((run := stopped(tmp_path, 6)), 256, ckpt=run.last, base_lr=1e-3)
    assert after.steps == before.steps[-len(after.steps) :]
    assert after.rates == pytest.approx([rate / 10 for rate in before.rates[-len(after.rates) :]])


def test_a_longer_run_has_the_schedule_of_that_length(tmp_path):
    whole, _ = rates(new_run(tmp_path / "whole"), 256, max_epochs=5)
    after, _ = rates((run := stopped(tmp_path, 6)), 256, ckpt=run.last, max_epochs=5)
    assert after.rates == whole.rates[-len(after.rates) :]


def test_another_batch_size_has_the_schedule_and_the_steps_of_that_size(tmp_path):
    """5 batches of 256, or 10 of 128; 6 steps of 256 are an epoch and 256 images, so 10 + 2 steps of 128."""
    whole, _ = rates(new_run(tmp_path / "whole"), 128)
    after, _ = rates((run := stopped(tmp_path, 6)), 128, ckpt=run.last)
    assert after.steps[0] == 12
    assert after.rates == whole.rates[-len(after.rates) :]
    assert read_checkpoint(run.last)["global_step"] == 30


def test_an_average_goes_on_after_a_larger_batch_has_lowered_the_number_of_steps(tmp_path):
    run = stopped(tmp_path, 12, batch_size=128, average=[WeightAverage(0.9)])
    before = read_checkpoint(run.last)
    rates(run, 256, ckpt=run.last, average=[WeightAverage(0.9)])
    after = read_checkpoint(run.last)
    steps = after["global_step"] - 6
    counts = [content["averaging_state"]["n_averaged"].item() for content in (before, after)]
    assert counts[1] - counts[0] == steps > 0


def test_metrics_of_other_steps_are_set_aside_and_never_lost(tmp_path):
    run = stopped(tmp_path, 6)
    saved = run.last.read_bytes()
    for rows in ("step,train/loss\n6,1\n", "step,train/loss\n13,2\n"):  # resumed twice from one checkpoint
        run.last.write_bytes(saved)
        run.metrics.write_text(rows)
        rates(run, 128, ckpt=run.last, max_epochs=2)
        assert run.metrics.with_name("metrics-to-step6.csv").read_text() == "step,train/loss\n6,1\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 1}, r"trainer\.max_epochs=1: the run has trained 1\.2 epochs already: set more"),
        ({"max_steps": 5}, r"trainer\.max_steps=5: the run has trained 6 steps already: set more"),
    ],
)
def test_a_length_shorter_than_what_is_trained_is_refused(tmp_path, settings, message):
    run = stopped(tmp_path, 6)
    with pytest.raises(UserError, match=message):
        rates(run, 256, ckpt=run.last, **settings)


@pytest.mark.parametrize("settings", [{"max_steps": 10}, {"max_epochs": 2}])
def test_a_run_with_nothing_left_to_train_says_so(tmp_path, settings, caplog):
    caplog.set_level(logging.INFO)
    run = stopped(tmp_path, 10)
    after, _ = rates(run, 256, ckpt=run.last, **settings)
    assert not after.rates
    assert "nothing is left to train" in caplog.text


def test_a_checkpoint_of_an_earlier_version_resumes_with_its_own_batch_size_only(tmp_path):
    run = stopped(tmp_path, 6)
    content = read_checkpoint(run.last)
    del content["ImageData"]
    content["vitmae_config"] = {"data": {"batch_size": 256}, "trainer": {"accumulate_grad_batches": 1}}
    torch.save(content, run.last)
    for changed, message in (
        ({"batch_size": 128}, r"data\.batch_size=128: the checkpoint is of an earlier version"),
        ({"batch_size": 256, "accumulate_grad_batches": 2}, r"trainer\.accumulate_grad_batches=2: the checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            rates(run, ckpt=run.last, **changed)
    assert rates(run, 256, ckpt=run.last)[0].steps[0] == 6
