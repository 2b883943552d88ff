"""A signal at any moment of `fit`: the run stops there, and the resumed run ends as if it had not been stopped."""

import os
import signal
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer

from tests.training.standin import QUIET, SETTINGS, Numbers, Weights, new_run
from vitmae.interruption import Interrupted, interruption
from vitmae.training.averaging import WeightAverage, averaged
from vitmae.training.checkpoints import Checkpoints
from vitmae.training.fit import fit
from vitmae.training.loggers import MetricsFile, read_metrics

pytestmark = QUIET


class Probe(Callback):
    """Before the first step and at each epoch's end, logs a function of the averaged weights."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            self.log_weights(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.log_weights(trainer, pl_module)

    def log_weights(self, trainer, pl_module):
        with averaged(trainer, pl_module):
            self.look()
            value = float(pl_module.weights.detach().sum())
        for logger in trainer.loggers:
            logger.log_metrics({"probe": value}, step=trainer.global_step)

    def look(self):
        """For a signal in the middle of a probe."""


HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_save_checkpoint",
    "on_train_end",
)
ONCE = ("on_fit_start", "on_train_start", "on_train_end")


class SignalAt(Callback):
    """Sends this process a signal at the n-th time that a hook is called, the first being 1."""

    def __init__(self, hook, nth):
        self.left = nth
        setattr(self, hook, self.count)

    def count(self, *args):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class NumbersAt(Numbers):
    """Sends the signal while the n-th training batch is loaded."""

    def __init__(self, nth):
        super().__init__()
        self.left = nth

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return batch


def run_fit(run, ckpt=None, callbacks=(), probe=None, data=None, **settings):
    objective = Weights()
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 1} | settings
    fit(
        objective,
        data or Numbers(),
        partial(Trainer, **settings),
        run=run,
        checkpoints=Checkpoints(run, objective.monitor, 4, SETTINGS),
        callbacks=[WeightAverage(0.9), *callbacks, probe or Probe()],
        loggers=[MetricsFile(run)],
        settings=SETTINGS,
        ckpt=ckpt,
    )
    return objective


def end_of(run):
    content = torch.load(run.last, weights_only=True)
    best = torch.load(run.best, weights_only=True) if run.best.exists() else {"global_step": None}
    return (
        content["state_dict"]["weights"].tolist(),
        content["current_model_state"]["weights"].tolist(),
        content["optimizer_states"][0]["state"][0]["exp_avg_sq"].tolist(),
        content["loops"]["fit_loop"]["epoch_progress"],
        content["callbacks"]["Checkpoints"]["best_value"],
        best["global_step"],
        read_metrics(run.metrics),
    )


EPOCHS = {"max_epochs": 3}
CASES = {
    "each epoch": EPOCHS,
    "within epochs": EPOCHS | {"val_check_interval": 2},
    "every other epoch": EPOCHS | {"check_val_every_n_epoch": 2},
    "never": EPOCHS | {"limit_val_batches": 0},
    "accumulated": EPOCHS | {"accumulate_grad_batches": 2},
    "validated within an accumulation": EPOCHS | {"accumulate_grad_batches": 2, "val_check_interval": 3},
    "ends within an epoch": {"max_steps": 7, "max_epochs": -1},
    "ends within an epoch with a validation": {"max_steps": 7, "max_epochs": -1, "val_check_interval": 2},
    "ends with an epoch": {"max_steps": 10, "max_epochs": -1},
}
wholes = {}


@pytest.fixture
def whole(tmp_path, request):
    """The end of the uninterrupted run of a case."""

    def of(case):
        if case not in wholes:
            run = new_run(tmp_path / "whole")
            run_fit(run, **CASES[case])
            wholes[case] = end_of(run)
        return wholes[case]

    return of


def ends_as_the_whole(run, case, whole, **how):
    with pytest.raises(Interrupted), interruption.answered():
        run_fit(run, **CASES[case], **how)
    run_fit(run, ckpt=run.last if run.last.exists() else None, **CASES[case])
    assert end_of(run) == whole(case)


@pytest.mark.parametrize(
    ("hook", "nth"),
    [(hook, nth) for hook in HOOKS for nth in ((1,) if hook in ONCE else (1, 3))],
)
def test_a_signal_at_any_hook_changes_nothing_of_the_end(tmp_path, hook, nth, whole):
    ends_as_the_whole(new_run(tmp_path / "run"), "each epoch", whole, callbacks=[SignalAt(hook, nth)])


@pytest.mark.slow
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in ONCE])
@pytest.mark.parametrize("nth", [2, 3])
@pytest.mark.parametrize("case", list(CASES)[1:])
def test_nor_does_it_in_a_run_that_validates_at_other_times(tmp_path, hook, nth, case, whole):
    if (case == "never" and "validation" in hook) or ("ends" in case and "train_epoch" in hook and nth == 3):
        pytest.skip("there is none")
    ends_as_the_whole(new_run(tmp_path / "run"), case, whole, callbacks=[SignalAt(hook, nth)])


@pytest.mark.parametrize("nth", [1, 2, 5, 6, 8])
@pytest.mark.parametrize("case", ["each epoch", "within epochs"])
def test_a_signal_while_a_batch_is_loaded_changes_nothing(tmp_path, nth, case, whole):
    ends_as_the_whole(new_run(tmp_path / "run"), case, whole, data=NumbersAt(nth))


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("case", ["each epoch", "every other epoch", "ends within an epoch"])
def test_a_signal_within_a_probe_changes_nothing(tmp_path, nth, case, whole):
    probe = Probe()
    probe.look = SignalAt("look", nth).look
    ends_as_the_whole(new_run(tmp_path / "run"), case, whole, probe=probe)
