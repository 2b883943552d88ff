"""A value that is not finite spoils nothing: no weight, no checkpoint, and its step can be looked at."""

import math

import pytest
import torch
from lightning import Callback

from tests.training.runs import digits, tiny_objective
from tests.training.standin import QUIET, SETTINGS, Numbers, Weights, new_run, new_trainer
from tests.training.test_online import Kept
from vitmae.errors import UserError
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.training import safety as module
from vitmae.training.averaging import WeightAverage
from vitmae.training.checkpoints import Checkpoints
from vitmae.training.safety import MOST_SKIPPED, Safety, all_finite
from vitmae.training.step_log import StepLog

pytestmark = QUIET


class Steps(Callback):
    """The weights, moments and learning rate after each optimiser step."""

    def __init__(self):
        self.weights, self.counts, self.moments, self.rates = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        (optimizer,) = trainer.optimizers
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))
        self.counts.append({float(state["step"]) for state in optimizer.state.values()})
        self.moments.append([state["exp_avg"].clone() for state in optimizer.state.values()])
        self.rates.append(optimizer.param_groups[0]["lr"])


def broken(objective, batches, factor=math.nan):
    """The objective, whose loss is multiplied by a factor in some training batches, counted from 1."""
    measure, seen = objective.measure, []

    def measured(batch):
        metrics = measure(batch)
        if objective.training:
            seen.append(batch)
            if len(seen) in batches:
                metrics = {"loss": metrics["loss"] * factor}
        return metrics

    objective.measure, objective.seen = measured, seen
    return objective


def fit(tmp_path, batches, policy="stop", every=1, factor=math.nan, callbacks=(), logger=None, **settings):
    """Train 6 steps; the run, what was seen at each step, and the objective."""
    torch.manual_seed(0)
    data, run, steps = digits(), new_run(tmp_path), Steps()
    objective = broken(tiny_objective("mae", data), batches, factor)
    guard = Safety(run, SETTINGS, {}, policy)
    checkpoints = Checkpoints(run, objective.monitor, every, SETTINGS)
    settings = {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 0} | settings
    trainer = new_trainer(run, checkpoints, *callbacks, guard, steps, **settings)
    trainer.loggers = [logger] if logger else []
    try:
        trainer.fit(objective, datamodule=data)
    except UserError as error:
        return run, steps, objective, str(error)
    return run, steps, objective, ""


def test_the_run_stops_before_the_step_in_one_line_with_what_to_do(tmp_path):
    run, steps, objective, error = fit(tmp_path, {4})
    assert len(steps.weights) == 3
    left = torch.cat([p.detach().flatten() for p in objective.parameters()])
    assert torch.equal(left, steps.weights[-1])
    assert "step 4: the loss is nan and the norm of the gradient nan" in error
    for words in (
        f"python -m vitmae.replay bundle={run.path}/nonfinite/step4.ckpt",
        f"ckpt={run.path}",
        "smaller model.optimizer.base_lr",
        "model.optimizer.warmup_epochs",
        "trainer.gradient_clip_val=1",
        "on_nonfinite=skip",
    ):
        assert words in error
    assert "\n" not in error
    assert read_checkpoint(run.last)["global_step"] == 3


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_gradient_alone_that_is_not_finite_stops_the_run_too(tmp_path, factor):
    class Spoil(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 2:
                pl_module.decoder.pred.bias.grad[0] = factor

    *_, error = fit(tmp_path, set(), callbacks=[Spoil()])
    assert "step 3: the loss is " in error
    assert f"norm of the gradient {factor:g}" in error


def test_a_loss_alone_that_is_not_finite_stops_the_run_too(tmp_path):
    data, run = digits(), new_run(tmp_path)
    objective = tiny_objective("mae", data)
    measure = objective.measure
    objective.measure = lambda batch: {"loss": measure(batch)["loss"] + math.inf}  # its gradient is finite
    checkpoints = Checkpoints(run, objective.monitor, 1, SETTINGS)
    trainer = new_trainer(run, checkpoints, Safety(run, SETTINGS), max_epochs=1)
    with pytest.raises(UserError, match=r"step 1: the loss is inf and the norm of the gradient \d"):
        trainer.fit(objective, datamodule=data)


def test_in_an_accumulated_step_every_loss_counts(tmp_path):
    run, _, _, error = fit(tmp_path, {3}, accumulate_grad_batches=2)  # the first of the second step
    assert "step 2: the loss is nan" in error
    assert len(read_checkpoint(run.path / "nonfinite" / "step2.ckpt")["batches"][0]) == 2


def test_a_checkpoint_that_is_saved_after_a_skipped_step_can_be_read(tmp_path):
    """The running mean of the loss is nan then, and a tensor that is nan is refused on reading."""

    class Stop(Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 4:
                raise UserError("stop")

    run, *_ = fit(tmp_path, {3}, "skip", logger=Kept(), callbacks=[StepLog(), Stop()], log_every_n_steps=5)
    saved = read_checkpoint(run.last)
    assert saved["global_step"] == 4
    assert math.isnan(saved["callbacks"]["StepLog"]["sums"]["loss"])


@pytest.mark.parametrize("every", [1, 1000])
def test_a_skipped_step_leaves_weights_and_moments_and_the_schedule_moves_on(tmp_path, every):
    logger = Kept()
    _, steps, _, error = fit(tmp_path / "a", {3}, "skip", every, logger=logger)
    _, whole, *_ = fit(tmp_path / "b", set(), "skip", every)
    assert error == ""
    assert torch.equal(steps.weights[2], steps.weights[1])
    assert all(map(torch.equal, steps.moments[2], steps.moments[1]))
    assert (steps.counts[1], steps.counts[2], steps.counts[3]) == ({2.0}, {2.0}, {3.0})
    assert steps.rates == whole.rates
    assert not torch.equal(steps.weights[3], steps.weights[2])
    assert [(step, row) for step, row in logger.rows if "train/skipped_steps" in row] == [
        (3, {"train/skipped_steps": 1})
    ]


def test_a_run_that_skips_too_many_steps_in_a_row_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_SKIPPED", 3)
    *_, error = fit(tmp_path / "a", {1, 2, 4, 5}, "skip")
    assert error == ""
    *_, error = fit(tmp_path / "b", {2, 3, 4}, "skip")
    assert "step 4" in error
    assert "as in the 2 steps before" in error
    assert MOST_SKIPPED == 20


def test_the_count_of_skipped_steps_is_resumed(tmp_path):
    run, *_ = fit(tmp_path, {2, 6}, "skip")
    saved = read_checkpoint(run.last)["callbacks"]["Safety"]
    assert saved == {"skipped_steps": 2, "in_a_row": 1}
    resumed = Safety(run, SETTINGS)
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == saved


def test_at_most_three_steps_of_a_run_are_saved(tmp_path):
    run, *_ = fit(tmp_path, {1, 2, 3, 5, 6}, "skip")
    assert {path.name for path in (run.path / "nonfinite").iterdir()} == {"step1.ckpt", "step2.ckpt", "step3.ckpt"}


@pytest.mark.parametrize("average", [(), (0.9,)])
def test_a_rollback_loads_the_last_checkpoint_and_goes_on_with_the_next_batch(tmp_path, average):
    run, steps, objective, error = fit(tmp_path, {4}, "rollback", every=2, callbacks=[*map(WeightAverage, average)])
    assert error == ""
    assert torch.equal(steps.weights[3], steps.weights[1])  # those of step 2
    assert all(map(torch.equal, steps.moments[3], steps.moments[1]))
    assert steps.counts[3] == {2.0}
    assert not torch.equal(steps.weights[4], steps.weights[3])
    assert len(objective.seen) == 6
    assert len({batch.key for batch in objective.seen}) == 6  # no batch came twice
    assert read_checkpoint(run.last)["global_step"] == 6


def test_a_rollback_has_the_learning_rate_of_the_present_step(tmp_path):
    _, steps, *_ = fit(tmp_path / "a", {4}, "rollback", every=2)
    _, whole, *_ = fit(tmp_path / "b", set())
    assert steps.rates == whole.rates


@pytest.mark.parametrize(
    ("batches", "every", "step", "message"),
    [({3}, 1000, 3, "no checkpoint yet to roll back to"), ({4, 5}, 3, 5, "was rolled back to step 3 already")],
)
def test_a_rollback_that_cannot_help_stops_the_run(tmp_path, batches, every, step, message):
    *_, error = fit(tmp_path, batches, "rollback", every)
    assert f"step {step}: " in error
    assert message in error
    assert "ckpt=" in error


def test_a_later_checkpoint_allows_another_rollback(tmp_path):
    *_, error = fit(tmp_path, {2, 5}, "rollback", every=1)
    assert error == ""


class Spoil(Callback):
    """After step 3, one value of the weights, of the moments or of the average is not finite."""

    def __init__(self, what, average):
        self.what, self.average = what, average

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 3:
            (optimizer,) = trainer.optimizers
            spoiled = {
                "weights": pl_module.weights,
                "moments": optimizer.state[pl_module.weights]["exp_avg_sq"],
                "average": module.average_of(self.average).module.weights,
            }
            spoiled[self.what].data[1] = math.inf


@pytest.mark.parametrize("what", ["weights", "moments", "average"])
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 3, "accumulate_grad_batches": 2}])
def test_weights_moments_and_averages_that_are_not_finite_replace_no_checkpoint(tmp_path, what, settings):
    run, objective, average = new_run(tmp_path), Weights(), WeightAverage(0.9)
    checkpoints = Checkpoints(run, objective.monitor, 1, SETTINGS)
    trainer = new_trainer(run, checkpoints, average, Spoil(what, average), max_epochs=2, **settings)
    with pytest.raises(UserError, match=r"step 3: weights or the optimiser's state are not finite.*ckpt="):
        trainer.fit(objective, datamodule=Numbers())
    saved = [read_checkpoint(path) for path in run.checkpoints.iterdir()]
    assert max(content["global_step"] for content in saved) == 2
    assert all(all_finite(content["state_dict"].values()) for content in saved)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_held_out_value_that_is_not_finite_is_never_the_best(tmp_path, value):
    run = new_run(tmp_path)
    for mode in ("min", "max"):
        checkpoints = Checkpoints(run, ("val/loss", mode), 1, SETTINGS)
        assert not checkpoints._beats_best(torch.tensor(value))


def test_whole_numbers_and_plain_values_are_finite():
    assert all_finite([torch.ones(2, dtype=torch.int64), 3, None, torch.empty(0)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, math.inf])])


def test_a_policy_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="on_nonfinite=wait: must be stop, skip or rollback"):
        Safety(new_run(tmp_path), SETTINGS, {}, "wait")
