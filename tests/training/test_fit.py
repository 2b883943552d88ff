import json
import os
import re
import signal
import warnings
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import StrategyRegistry

from tests.training.runs import digits, tiny_objective, trainer
from tests.training.standin import QUIET, SETTINGS, Numbers, Weights, new_run
from vitmae.errors import UserError
from vitmae.interruption import Interrupted, interruption
from vitmae.recipe import Recipe
from vitmae.runs.checkpoint_file import read_checkpoint
from vitmae.runs.preflight import check_devices, check_strategy, resolve_precision
from vitmae.training.checkpoints import Checkpoints
from vitmae.training.fit import fit
from vitmae.training.loggers import MetricsFile, read_metrics
from vitmae.training.progress import Progress

pytestmark = QUIET


def run_fit(run, objective=None, ckpt=None, callbacks=(), **settings):
    objective = objective or Weights()
    checkpoints = Checkpoints(run, objective.monitor, 1000, SETTINGS)
    build = partial(
        Trainer, **{"accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0} | settings
    )
    return fit(
        objective,
        Numbers(),
        build,
        run=run,
        checkpoints=checkpoints,
        callbacks=callbacks,
        loggers=[MetricsFile(run)],
        settings=SETTINGS,
        ckpt=ckpt,
    )


def test_a_fit_returns_the_final_metrics_and_leaves_its_files(tmp_path):
    run = new_run(tmp_path)
    metrics = run_fit(run, max_epochs=2)
    assert metrics["val/loss"] == pytest.approx(float(read_metrics(run.metrics)[1][-1]["val/loss"]))
    assert run.last.exists()
    assert run.best.exists()
    assert json.loads((tmp_path / "environment.json").read_text())["devices"] == ["cpu, 1 threads"]


@pytest.mark.parametrize(
    "settings", [{"max_steps": 3, "max_epochs": -1}, {"max_epochs": 1, "check_val_every_n_epoch": 2}]
)
def test_a_run_that_ends_between_two_validations_is_validated_once_more(tmp_path, settings):
    run, objective = new_run(tmp_path), Weights()
    metrics = run_fit(run, objective, **settings)
    assert [step for kind, _, step, *_ in objective.trace if kind == "val"] == [objective.global_step] * 2
    assert "val/loss" in metrics
    assert read_checkpoint(run.best)["global_step"] == objective.global_step


def test_a_run_that_ends_with_a_validation_is_not_validated_twice(tmp_path):
    objective = Weights()
    run_fit(new_run(tmp_path), objective, max_epochs=1)
    assert [kind for kind, *_ in objective.trace].count("val") == 2  # its two batches


def test_a_finished_run_can_be_asked_for_again_and_trains_no_further(tmp_path):
    run = new_run(tmp_path)
    first = run_fit(run, max_epochs=1)
    objective = Weights()
    assert run_fit(run, objective, ckpt=run.last, max_epochs=1) == pytest.approx(first)
    assert not any(kind == "train" for kind, *_ in objective.trace)


def test_peak_and_warm_up_count_optimiser_steps_and_all_images_of_each(tmp_path):
    """Five batches of 64 images, two for each step: three steps an epoch, the last of one batch."""

    class Rates(Callback):
        def __init__(self):
            self.of_step = {}

        def on_train_batch_start(self, trainer, *rest):
            self.of_step[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]

    rates, data = Rates(), digits(batch_size=64)
    objective = tiny_objective("mae", data)
    objective.optimizer = Recipe(base_lr=1e-2, warmup_epochs=1)
    settings = {"limit_train_batches": 5, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    trainer(tmp_path, [rates], **settings).fit(objective, datamodule=data)
    assert len(rates.of_step) == 6
    assert rates.of_step[3] == max(rates.of_step.values()) == pytest.approx(1e-2 * 2 * 64 / 256)


def test_where_a_scheduler_is_installed_a_run_says_nothing_of_it(tmp_path, monkeypatch):
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings():  # what fit() leaves out, and nothing that a test leaves out
        warnings.resetwarnings()
        warnings.simplefilter("error")
        run_fit(new_run(tmp_path / "run"), max_epochs=1)


def test_settings_that_do_not_fit_each_other_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^trainer: .*devices") as error:
        run_fit(new_run(tmp_path), devices=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 4, "val_check_interval": 1000}, r"^trainer: .*val_check_interval"),
        ({"max_epochs": 1}, r"^trainer: You restored a checkpoint with current_epoch=2"),
    ],
)
def test_a_resumed_run_that_cannot_be_so_is_one_line(tmp_path, settings, message):
    run = new_run(tmp_path)
    run_fit(run, max_epochs=3)
    with pytest.raises(UserError, match=message) as error:
        run_fit(run, ckpt=run.last, **settings)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_shape_is_one_line_that_names_what_does_not_fit(tmp_path):
    run, other = new_run(tmp_path), Weights()
    run_fit(run, max_epochs=1)
    other.weights = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(UserError, match="does not fit these settings: size mismatch for weights"):
        run_fit(run, other, ckpt=run.last, max_epochs=2)


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    run = new_run(tmp_path)
    run.last.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        run_fit(run, ckpt=run.last, max_epochs=1)


def test_a_mistake_found_inside_a_hook_stays_a_mistake(tmp_path):
    class Picky(Callback):
        def on_train_start(self, trainer, pl_module):
            raise UserError("warm-up longer than the run")

    with pytest.raises(UserError, match="warm-up longer than the run"):
        run_fit(new_run(tmp_path), callbacks=[Picky()], max_epochs=1)


def test_a_second_ctrl_c_stops_at_once_and_saves_nothing(tmp_path):
    class Impatient(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    run = new_run(tmp_path)
    with pytest.raises(Interrupted) as stop, interruption.answered():
        run_fit(run, callbacks=[Impatient()], max_epochs=1)
    assert stop.value.code == 130
    assert not run.last.exists()


@pytest.mark.parametrize(
    ("accelerator", "cuda", "cuda_bf16", "cpu_bf16", "precision"),
    [
        ("auto", False, False, True, "bf16-mixed"),
        ("cpu", True, True, False, "32-true"),
        ("cpu", True, False, True, "bf16-mixed"),
        ("auto", True, True, False, "bf16-mixed"),
        ("gpu", True, False, True, "32-true"),
        ("mps", False, False, True, "32-true"),
    ],
)
def test_the_automatic_precision_is_bf16_where_the_device_computes_in_it(
    monkeypatch, accelerator, cuda, cuda_bf16, cpu_bf16, precision
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_tile": cpu_bf16})
    assert resolve_precision("auto", accelerator) == precision
    assert resolve_precision("16-mixed", accelerator) == "16-mixed"


@pytest.mark.parametrize(
    ("accelerator", "devices", "there", "message"),
    [
        ("gpu", 1, 0, "trainer.accelerator=gpu: no GPU is visible here"),
        ("cuda", -1, 0, "trainer.accelerator=cuda: no GPU is visible here"),
        ("gpu", 3, 2, "trainer.devices=3: 2 GPUs are visible here"),
        ("gpu", [0, 2], 2, r"trainer.devices=\[0, 2\]: 2 GPUs are visible here"),
        ("gpu", "4", 2, "trainer.devices=4: 2 GPUs are visible here"),
    ],
)
def test_gpus_that_are_not_there_are_one_line(monkeypatch, accelerator, devices, there, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        check_devices(accelerator, devices)


@pytest.mark.parametrize(
    ("accelerator", "devices"), [("cpu", 8), ("auto", 1), ("gpu", 2), ("gpu", -1), ("gpu", "auto"), ("gpu", [1])]
)
def test_devices_that_are_there_are_not_refused(monkeypatch, accelerator, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(accelerator, devices)


@pytest.mark.parametrize(
    "strategy",
    [name for name in StrategyRegistry.available_strategies() if re.match("ddp_(spawn|fork|notebook)", name)]
    + [{"_target_": "lightning.pytorch.strategies.DDPStrategy", "start_method": "spawn"}],
)
def test_a_strategy_that_copies_this_process_is_refused_with_the_remedy(strategy):
    with pytest.raises(UserError, match=r"^trainer\.strategy=\S+: starts processes by \w+, .*: use ddp$"):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "strategy",
    [
        "auto",
        "ddp",
        "ddp_find_unused_parameters_true",
        "fsdp",
        {"_target_": "lightning.pytorch.strategies.DDPStrategy"},
    ],
)
def test_other_strategies_are_not_refused(strategy):
    check_strategy(strategy)


def test_without_a_terminal_progress_is_lines_that_say_where_the_run_is(tmp_path, caplog):
    caplog.set_level("INFO")
    progress = Progress(line_s=0)
    run_fit(new_run(tmp_path), callbacks=[progress], max_epochs=2, enable_progress_bar=True)
    lines = [record.getMessage() for record in caplog.records if record.name == "vitmae.training.progress"]
    assert [line.split("  ")[0] for line in lines] == [f"step {step}/10" for step in [*range(1, 11), 10]]
    assert "  loss 0  " in lines[0]
    assert "val/loss" in lines[-1]


def test_in_a_terminal_progress_is_one_bar_for_the_whole_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run_fit(new_run(tmp_path), callbacks=[Progress(bar_s=0)], max_epochs=2, enable_progress_bar=True)
    assert "10/10" in capsys.readouterr().err


def test_a_disabled_progress_says_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    progress = Progress(line_s=0)
    progress.disable()
    run_fit(new_run(tmp_path), callbacks=[progress], max_epochs=1, enable_progress_bar=True)
    assert not [record for record in caplog.records if record.name == "vitmae.training.progress"]
