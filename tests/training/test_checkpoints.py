import os
import pickle
import signal

import pytest
import torch

from tests.training.standin import (
    QUIET,
    SETTINGS,
    KillBefore,
    Killed,
    Numbers,
    Weights,
    new_run,
    new_trainer,
    train,
)
from vitmae.errors import UserError
from vitmae.interruption import Interrupted, interruption
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.training import checkpoints as module
from vitmae.training.checkpoints import AtomicCheckpointIO, Checkpoints

pytestmark = QUIET

EPOCHS, STEPS = {"max_epochs": 3}, {"max_steps": 7, "max_epochs": -1}
EACH_EPOCH, EVERY_OTHER_EPOCH, WITHIN = {}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 2}
ACROSS, NEVER = {"val_check_interval": 3, "check_val_every_n_epoch": None}, {"limit_val_batches": 0}


@pytest.mark.parametrize(
    ("settings", "every_n_steps", "kills"),
    [
        (EPOCHS | EACH_EPOCH, 2, (4, 6, 14)),
        (EPOCHS | WITHIN, 1, (2, 3, 6, 8)),
        (EPOCHS | ACROSS | {"accumulate_grad_batches": 2}, 1, (4, 6, 7)),
        (EPOCHS | EVERY_OTHER_EPOCH | {"accumulate_grad_batches": 2}, 2, (5, 8, 13)),
        (STEPS | EVERY_OTHER_EPOCH, 1, (4, 6, 7)),
        (STEPS | WITHIN | {"accumulate_grad_batches": 2}, 1, (6, 8, 12)),
        (STEPS | NEVER, 1000, (6, 7)),
        (STEPS | ACROSS, 2, (4, 7)),
    ],
)
def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, settings, every_n_steps, kills):
    whole = train(new_run(tmp_path / "whole"), every_n_steps, **settings)
    for kill in kills:
        run = new_run(tmp_path / f"killed-{kill}")
        before = train(run, every_n_steps, (KillBefore(kill),), **settings).trace
        after = train(run, every_n_steps, ckpt=run.last, **settings)
        kept = len(whole.trace) - len(after.trace)
        assert before[:kept] + after.trace == whole.trace  # each batch once, each validation once, in the same order
        assert torch.equal(whole.weights, after.weights)


@pytest.mark.parametrize(
    ("short", "long"), [({"max_epochs": 2}, {"max_epochs": 3}), ({"max_steps": 7}, {"max_steps": 12})]
)
def test_a_finished_run_that_is_made_longer_ends_as_if_it_had_been_so_from_the_start(tmp_path, short, long):
    whole = train(new_run(tmp_path / "whole"), **long)
    run = new_run(tmp_path / "run")
    train(run, **short)
    assert torch.equal(train(run, ckpt=run.last, **long).weights, whole.weights)


def test_nothing_is_saved_while_gradients_are_being_accumulated(tmp_path):
    run = new_run(tmp_path)
    train(run, 1, (KillBefore(3),), max_epochs=1, accumulate_grad_batches=2, val_check_interval=3)
    assert read_checkpoint(run.last)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 2


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path):
    run = new_run(tmp_path)
    trace = train(run, 1, max_epochs=2, val_check_interval=2).trace
    means = {}
    for kind, *facts in trace:
        if kind == "val":
            means.setdefault(facts[1], []).append(facts[2])
    best_step = min(means, key=lambda step: sum(means[step]))
    best = read_checkpoint(run.best)
    assert best["global_step"] == best_step != read_checkpoint(run.last)["global_step"]


def test_a_run_that_resumes_from_its_best_keeps_it(tmp_path):
    run = new_run(tmp_path)
    train(run, 1, max_epochs=2, val_check_interval=2)
    best = read_checkpoint(run.best)["global_step"]
    train(run, 1000, ckpt=run.best, max_steps=best + 1, max_epochs=-1, limit_val_batches=0)
    assert read_checkpoint(run.best)["global_step"] == best


def test_what_is_validated_before_the_first_step_is_no_best(tmp_path):
    run, objective = new_run(tmp_path), Weights()
    checkpoints = Checkpoints(run, objective.monitor, 1000, SETTINGS)
    trainer = new_trainer(run, checkpoints, max_steps=3, max_epochs=-1)
    trainer.num_sanity_val_steps = 2
    trainer.fit(objective, datamodule=Numbers())
    assert run.last.exists()
    assert not run.best.exists()
    assert checkpoints.validated_step == -1


def test_a_metric_of_which_more_is_better_is_kept_at_its_highest(tmp_path):
    run, objective = new_run(tmp_path), Weights()
    checkpoints = Checkpoints(run, ("val/loss", "max"), 1000, SETTINGS)
    trainer = new_trainer(run, checkpoints, max_epochs=3)
    trainer.fit(objective, datamodule=Numbers())
    assert (
        read_checkpoint(run.best)["global_step"]
        == max((facts for kind, *facts in objective.trace if kind == "val"), key=lambda facts: facts[2])[1]
    )


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equally_good_checkpoints_the_first_stays_the_best(tmp_path, mode):
    class Level(Weights):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.ones(()), on_epoch=True, batch_size=1)

    run = new_run(tmp_path)
    checkpoints = Checkpoints(run, ("val/loss", mode), 1000, SETTINGS)
    new_trainer(run, checkpoints, max_epochs=3).fit(Level(), datamodule=Numbers())
    assert read_checkpoint(run.best)["global_step"] == 5
    assert read_checkpoint(run.last)["global_step"] == 15


def test_a_resumed_run_has_to_beat_the_best_of_before(tmp_path):
    run = new_run(tmp_path)
    train(run, 1, max_epochs=2, val_check_interval=2)
    best = read_checkpoint(run.best)
    saved = read_checkpoint(run.last)["callbacks"]["Checkpoints"]["best_value"]
    checkpoints = Checkpoints(run, ("val/loss", "min"), 1000, SETTINGS)
    checkpoints.load_state_dict({"best_value": saved})
    assert not checkpoints._beats_best(torch.tensor(saved))
    assert checkpoints._beats_best(torch.tensor(saved - 0.1))
    assert best["callbacks"]["Checkpoints"]["best_value"] == saved


def test_a_validation_after_the_last_step_counts_for_the_best(tmp_path):
    run, objective = new_run(tmp_path), Weights()
    checkpoints = Checkpoints(run, objective.monitor, 1000, SETTINGS)
    trainer = new_trainer(run, checkpoints, max_steps=3, max_epochs=-1)
    trainer.fit(objective, datamodule=Numbers())
    assert not run.best.exists()
    trainer.validate(objective, datamodule=Numbers(), verbose=False)
    assert read_checkpoint(run.best)["global_step"] == 3 == checkpoints.validated_step


def test_a_checkpoint_holds_plain_types_and_the_settings(tmp_path):
    run = new_run(tmp_path)
    train(run, max_epochs=1)
    content = read_checkpoint(run.last)  # loads weights only
    assert content["vitmae_config"] == SETTINGS
    assert content["vitmae_format"] == module.FORMAT


class Stopped(Weights):
    """Asks for a stop by a signal in the middle of a step."""

    def __init__(self, number: int, batch: int) -> None:
        super().__init__()
        self.number, self.batch = number, batch

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if len([kind for kind, *_ in self.trace if kind == "train"]) == self.batch:
            os.kill(os.getpid(), self.number)
        return loss


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(
    ("batch", "settings", "step"),
    [(3, {}, 3), (5, {}, 5), (2, {"val_check_interval": 2}, 2), (3, {"accumulate_grad_batches": 2}, 2)],
)
def test_a_signal_stops_the_run_between_two_steps_and_it_goes_on_from_there(tmp_path, number, batch, settings, step):
    whole = train(new_run(tmp_path / "whole"), max_epochs=2, **settings)
    run, objective = new_run(tmp_path / "run"), Stopped(number, batch)
    before = signal.getsignal(number)
    trainer = new_trainer(run, Checkpoints(run, objective.monitor, 1000, SETTINGS), max_epochs=2, **settings)
    with pytest.raises(Interrupted) as stop, interruption.answered():
        trainer.fit(objective, datamodule=Numbers())
    assert stop.value.step == step
    assert signal.getsignal(number) == before
    after = train(run, ckpt=run.last, max_epochs=2, **settings)
    assert objective.trace + after.trace == whole.trace
    assert torch.equal(whole.weights, after.weights)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_previous_one(tmp_path, monkeypatch):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def save_half(content, file):
        file.write(pickle.dumps(content)[:5])
        raise Killed

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(Killed):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


class Payload:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": Payload()}, "pickled code or objects"),
        (b"PK\x03\x04 half a file", "is damaged"),
        (b"", "is damaged"),
        (b"PK", "is damaged"),
        ({"state_dict": {}}, "is not a checkpoint of this project"),
        ([1, 2], "holds no weights"),
        ({"vitmae_format": module.FORMAT + 1}, "newer vitmae"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line_and_never_run(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "PWNED").exists()


def test_a_save_interval_of_no_steps_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.every_n_steps=0"):
        Checkpoints(new_run(tmp_path), ("val/loss", "min"), 0, SETTINGS)
