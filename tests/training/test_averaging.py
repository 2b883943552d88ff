"""The averaged weights are those that are validated and used; the trained ones go on as if there were no average."""

import pytest
import torch

from tests.training.runs import digits, tiny_objective, trainer
from tests.training.standin import QUIET, SETTINGS, KillBefore, Numbers, Weights, new_run, new_trainer, train
from vitmae.errors import UserError
from vitmae.probes.features import extract
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.training.averaging import WeightAverage, decay_at
from vitmae.training.checkpoints import Checkpoints
from vitmae.training.online import OnlineProbe

pytestmark = QUIET


class Path(Weights):
    """Remembers the weights that each step leaves behind, and those that are validated."""

    def __init__(self):
        super().__init__()
        self.steps, self.validated = [], []

    def on_train_batch_end(self, *args):
        self.steps.append(self.weights.detach().clone())

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.validated.append(self.weights.detach().clone())


def average_of(steps, decay):
    mean = steps[0].double()
    for count, weights in enumerate(steps[1:], start=1):
        mean = mean + (1 - decay_at(count, decay)) * (weights.double() - mean)
    return mean.float()


def fit(run, objective, *callbacks, **settings):
    checkpoints = Checkpoints(run, objective.monitor, 1000, SETTINGS)
    new_trainer(run, checkpoints, *callbacks, **{"max_epochs": 2} | settings).fit(objective, datamodule=Numbers())
    return objective


def test_the_decay_begins_low_and_ends_at_what_was_asked_for():
    assert [decay_at(count, 0.9999) for count in (1, 10, 90)] == [2 / 11, 11 / 20, 91 / 100]
    assert decay_at(10**6, 0.9999) == 0.9999
    assert decay_at(100, 0.5) == 0.5


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_what_is_validated_saved_and_left_is_the_average_of_the_steps(tmp_path, decay):
    run, objective = new_run(tmp_path), Path()
    fit(run, objective, WeightAverage(decay))
    for epoch, steps in ((0, objective.steps[:5]), (1, objective.steps)):
        assert torch.allclose(objective.validated[2 * epoch], average_of(steps, decay), atol=1e-6)
    last = read_checkpoint(run.last)
    assert torch.equal(last["state_dict"]["weights"], objective.weights)
    assert torch.equal(last["state_dict"]["weights"], objective.validated[-1])
    assert torch.equal(last["current_model_state"]["weights"], objective.steps[-1])
    best = read_checkpoint(run.best)
    assert torch.equal(best["state_dict"]["weights"], objective.validated[0 if best["global_step"] == 5 else -1])


def test_an_average_changes_nothing_in_the_training(tmp_path):
    plain, with_average = fit(new_run(tmp_path / "a"), Path()), fit(new_run(tmp_path / "b"), Path(), WeightAverage(0.9))
    assert all(map(torch.equal, plain.steps, with_average.steps))
    assert not torch.equal(plain.weights, with_average.weights)


def test_accumulated_batches_are_averaged_once_per_optimiser_step(tmp_path):
    objective = fit(new_run(tmp_path), Path(), WeightAverage(0.9), accumulate_grad_batches=2, max_epochs=1)
    assert torch.allclose(objective.weights, average_of([objective.steps[i] for i in (1, 3, 4)], 0.9), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        ({"max_epochs": 3}, (4, 6, 14)),
        ({"max_epochs": 3, "val_check_interval": 2, "accumulate_grad_batches": 2}, (5, 8)),
    ],
)
def test_a_run_with_an_average_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, settings, kills):
    whole = train(new_run(tmp_path / "whole"), 1, (WeightAverage(0.9),), **settings)
    for kill in kills:
        run = new_run(tmp_path / f"killed-{kill}")
        before = train(run, 1, (WeightAverage(0.9), KillBefore(kill)), **settings).trace
        after = train(run, 1, (WeightAverage(0.9),), ckpt=run.last, **settings)
        kept = len(whole.trace) - len(after.trace)
        assert before[:kept] + after.trace == whole.trace
        assert torch.equal(whole.weights, after.weights)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [((), (WeightAverage(0.9),), "started without an average"), ((WeightAverage(0.9),), (), "has an average")],
)
def test_an_average_cannot_come_or_go_within_a_run(tmp_path, before, after, message):
    run = new_run(tmp_path)
    train(run, 1, before, max_epochs=1)
    with pytest.raises(UserError, match=message) as error:
        train(run, 1, after, ckpt=run.last, max_epochs=2)
    assert "\n" not in str(error.value)


def test_what_is_measured_of_the_data_is_copied_and_not_averaged(tmp_path):
    data = digits()
    objective = tiny_objective("mae", data)
    average = WeightAverage(0.9)
    objective.on_before_zero_grad = lambda optimizer: objective.mean_patch.add_(1.0)
    trainer(tmp_path, [average], max_epochs=1).fit(objective, datamodule=data)
    assert objective.mean_patch.eq(3.0).all()  # once a step


def test_the_probe_looks_at_the_averaged_weights(tmp_path, monkeypatch):
    data, probed = digits(), []
    accuracy = OnlineProbe._accuracy
    monkeypatch.setattr(OnlineProbe, "_accuracy", lambda self, *sets: probed.append(sets[0]) or accuracy(self, *sets))
    objective = tiny_objective("vit", data)
    trained = []
    objective.on_train_epoch_end = lambda: trained.append(objective.backbone.vit.norm.weight.detach().clone())
    callbacks = [WeightAverage(0.9), OnlineProbe(every_n_epochs=1, images=64)]
    trainer(tmp_path, callbacks, max_epochs=1).fit(objective, datamodule=data)
    assert not torch.equal(trained[0], objective.backbone.vit.norm.weight)  # the run ends with the average
    images, _ = data.probe_dataloaders(64)
    assert torch.equal(probed[-1].pooled["avg"], extract(objective.backbone, images, objective.normalize).pooled["avg"])
