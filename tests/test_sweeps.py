"""`python -m vitmae.train -m …`: checked before the first job, resumed by the same command."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command_line import run_command
from tests.test_train_command import TINY, only, same, weights
from tests.training.standin import QUIET
from vitmae import train as train_module
from vitmae.train import main

pytestmark = QUIET

SWEEP = [*TINY, "trainer.max_steps=4", "checkpoint.every_n_steps=1", "-m", "model.mask_ratio=0.5,0.75,0.6"]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(main, *arguments, capsys=capsys)


class Stopped(BaseException):
    """Stands for the end of the process."""


def end_in_job(number, saved, monkeypatch):
    """The process ends in one of the jobs, before it has begun to train, or after it has saved."""
    run, started = train_module._train, []

    def job(*given):
        started.append(given[1].run.path.name)
        if len(started) <= number:
            return run(*given)
        if saved:
            run(*given)
            given[1].run.record("running")
        raise Stopped

    monkeypatch.setattr(train_module, "_train", job)


def rows(sweep):
    with open(sweep / "sweep.csv", newline="") as file:
        return [(row["model.mask_ratio"], row["val/loss"], row["state"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("saved", [True, False])
def test_the_same_command_resumes_a_sweep(train, monkeypatch, saved):
    run, ckpts = train_module._train, []
    end_in_job(1, saved, monkeypatch)
    with pytest.raises(Stopped):
        train(*SWEEP)
    sweep = only("2*/*-sweep").resolve()
    first = sweep / "0-model.mask_ratio=0.5" / "checkpoints" / "last.ckpt"
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(train_module, "_train", lambda *given: ckpts.append(given[1].ckpt) or run(*given))
    done = train(*SWEEP)
    assert done.code == 0, done.err
    assert only("2*/*-sweep").resolve() == sweep
    assert f"resuming the sweep in {sweep}" in done.out
    last = sweep / "1-model.mask_ratio=0.75" / "checkpoints" / "last.ckpt"
    assert ckpts == [last if saved else None, None], "the finished job is skipped, the last one starts"
    assert first.stat().st_mtime_ns == before
    assert train(*SWEEP, "runs=whole").code == 0
    (whole,) = Path("whole").glob("2*/*-sweep")
    assert rows(sweep) == rows(whole)
    assert [row[2] for row in rows(sweep)] == ["finished"] * 3
    for job in whole.glob("*-model*"):
        assert same(weights(job)["state_dict"], weights(sweep / job.name)["state_dict"])


def test_a_finished_sweep_is_followed_by_a_new_one(train, monkeypatch):
    monkeypatch.setattr("vitmae.training.fit.fit", lambda *given, **others: {"val/loss": 1.0})
    for number in (1, 2):
        assert train(*TINY, "-m", "seed=3").code == 0
        assert len(list(Path("runs").glob("2*/*-sweep*"))) == number


def test_a_failed_job_runs_again_and_the_last_line_says_how(train, monkeypatch):
    words = [*TINY, "-m", "model.mask_ratio=0.5,0.75"]
    run = train_module._train

    def fail(settings, *given):
        if settings["model"]["mask_ratio"] == 0.75:
            raise ZeroDivisionError("once")
        return run(settings, *given)

    monkeypatch.setattr("vitmae.training.fit.fit", lambda *given, **others: {"val/loss": 1.0})
    monkeypatch.setattr(train_module, "_train", fail)
    done = train(*words)
    assert done.code == 1
    command = done.out.splitlines()[-1]
    assert command.startswith("the same command resumes the sweep: python -m vitmae.train -m trainer=cpu")
    assert [row[2] for row in rows(only("2*/*-sweep"))] == ["finished", "failed"]
    monkeypatch.setattr(train_module, "_train", run)
    done = train(*words)
    assert done.code == 0
    assert done.out.count("already finished") == 1
    assert [row[2] for row in rows(only("2*/*-sweep"))] == ["finished"] * 2


def test_a_finished_job_gives_the_sweeper_its_result_again(train, monkeypatch):
    monkeypatch.setattr("vitmae.training.fit.fit", lambda *given, **others: {"val/loss": 1.5, "val/acc1": 0.25})
    assert train(*TINY, "-m", "model=mae,vit").code == 0
    record = only("2*/*-sweep") / "sweep.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    results, monitored = [], train_module._monitored
    monkeypatch.setattr(train_module, "_monitored", lambda *given: results.append(monitored(*given)))
    assert train(*TINY, "-m", "model=mae,vit").code == 0
    assert results == [1.5, 0.25]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.mask_ratio=0.5,2"], "job 1 of the sweep: model.mask_ratio=2"),
        (["model=mae,vit", "model.mask_ratio=0.5"], "job 1 of the sweep: unknown setting model.mask_ratio"),
        (["data.batch_size=64,4000"], "job 1 of the sweep: data.batch_size=4000 is more than the"),
        (["data=folder", "data.path=/nope,/neither"], "job 0 of the sweep: data.path=/nope"),
        (["backbone.num_heads=2,3"], "job 1 of the sweep: "),
        (["data.train_fraction=1.0,0.001"], "job 1 of the sweep: no training image is left"),
        (["model.mask_ratio=0.5,0.6", "logger=csvv"], "did you mean logger=csv?"),
        (["model.optimizer.warmup_epochs=1,4", "trainer.max_epochs=3"], "job 1 of the sweep: model.optimizer.warmup"),
    ],
)
def test_all_jobs_are_checked_before_the_first_one_starts(train, monkeypatch, overrides, said):
    monkeypatch.setattr(train_module, "_train", lambda *given: pytest.fail("a job was started"))
    done = train(*TINY, "-m", *overrides)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert said in done.err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_two_equal_sweeps_at_once_take_two_directories(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitmae.train", *SWEEP, "trainer.max_steps=2000"]
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1)
    until = time.monotonic() + 180
    while not list(tmp_path.glob("runs/2*/*/0*/checkpoints/last.ckpt")) and time.monotonic() < until:
        time.sleep(0.1)
    second = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1)
    while len(list(tmp_path.glob("runs/2*/*/0*/checkpoints/last.ckpt"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    for process in (first, second):
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list(tmp_path.glob("runs/2*/*-sweep*"))) == 2
