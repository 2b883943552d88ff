"""Two ranks as srun and torchrun start them: one run, one decision, one ending, over all attempts of a job."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.processes import TWO_RANKS, work_in
from vitmae.runs.agreement import decided_settings
from vitmae.training.loggers import read_metrics

pytestmark = pytest.mark.slow

TINY = [
    *TWO_RANKS,
    "trainer.log_every_n_steps=1",
    "data.batch_size=64",
    "probe.every_n_epochs=1000",
    "panel.every_n_epochs=1000",
]


@pytest.fixture(autouse=True)
def a_directory_of_its_own(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


class Job:
    """A job of two tasks: `start` is its first attempt, or a later one after `scontrol requeue`."""

    def __init__(self, name, *arguments):
        self.name, self.arguments, self.attempt, self.ranks = name, arguments, -1, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def environment(self, rank):
        """What srun sets, and the batch script: the address is the same on all ranks."""
        rank_facts = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        restarts = {"SLURM_RESTART_COUNT": str(self.attempt)} if self.attempt else {}
        job = dict.fromkeys(("SLURM_JOB_ID", "SLURM_JOBID"), self.name)
        nodes = dict.fromkeys(("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"), "localhost")
        counts = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
        address = {
            "SLURM_JOB_NAME": "train",
            "SLURM_STEP_ID": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.port,
        }
        return {**os.environ, **job, **nodes, **counts, **address, **restarts, **rank_facts}

    def start(self, apart=0.0, order=(1, 0)):
        """Start the next attempt; rank 1 first, because the first rank must decide all the same."""
        self.attempt += 1
        started = {}
        for rank in order:
            command = [sys.executable, "-m", "vitmae.train", *TINY, *self.arguments]
            started[rank] = subprocess.Popen(command, env=self.environment(rank), text=True, stdout=-1, stderr=-1)
            time.sleep(apart)
        self.ranks = [started[0], started[1]]

    def end(self):
        """The exit codes of both ranks, what the first printed, and the errors of both."""
        (out, first), (_, other) = (rank.communicate(timeout=300) for rank in self.ranks)
        return [rank.returncode for rank in self.ranks], out, first + other

    def wait_for_step(self, step, runs="runs"):
        while (found := last_step(runs)) < step:
            assert all(rank.poll() is None for rank in self.ranks), self.end()
            time.sleep(0.05)
        return found


@pytest.fixture
def job():
    """Makes jobs; no process survives the test."""
    made = []

    def make(*arguments):
        made.append(Job(*arguments))
        return made[-1]

    yield make
    for rank in (rank for job in made for rank in job.ranks):
        rank.kill()
        rank.communicate()


def last_step(runs="runs"):
    """The last step that the run of a job has logged."""
    tables = [read_metrics(path)[1] for path in Path(runs).glob("2*/*/metrics.csv")]
    return max((int(rows[-1]["step"]) for rows in tables if rows), default=0)


def only_run():
    (run,) = Path("runs").glob("2*/*/")
    return run


def summary(run):
    return json.loads((run / "summary.json").read_text())


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def metrics(run):
    return [
        {key: value for key, value in row.items() if "per_s" not in key} for row in read_metrics(run / "metrics.csv")[1]
    ]


def test_a_job_that_is_interrupted_killed_and_requeued_twice_is_one_run_equal_to_an_uninterrupted_one(job, tmp_path):
    settings = ["trainer.max_epochs=5", "checkpoint.every_n_steps=7", "logger=wandb", "logger.wandb.mode=offline"]
    whole = job("41", *settings, "runs=whole")
    whole.start()
    codes, _, errors = whole.end()
    assert (codes, errors) == ([0, 0], "")

    stopped = job("42", *settings)
    stopped.start(apart=1)
    stopped.wait_for_step(9)
    for rank in stopped.ranks:
        rank.send_signal(signal.SIGUSR1)
    codes, out, errors = stopped.end()
    assert (codes, errors) == ([75, 75], "")
    assert "to resume: " in out
    first = summary(only_run())
    assert first["state"] == "interrupted"

    stopped.start()
    stopped.wait_for_step(first["step"] + 20)
    for rank in stopped.ranks:
        rank.kill()
    stopped.end()

    stopped.start(apart=1, order=(0, 1))
    codes, _, errors = stopped.end()
    assert (codes, errors) == ([0, 0], "")
    run, (reference,) = only_run(), Path("whole").glob("2*/*/")
    assert (summary(run)["state"], summary(run)["id"]) == ("finished", first["id"])
    assert {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")} == {first["id"]}
    ours, theirs = checkpoint(run), checkpoint(reference)
    assert ours["global_step"] == theirs["global_step"]
    assert all(torch.equal(ours["state_dict"][name], weight) for name, weight in theirs["state_dict"].items())
    assert metrics(run) == metrics(reference)
    assert os.listdir("runs/.launches") == [
        name for name in os.listdir("runs/.launches") if name.endswith(".directory")
    ]
    assert not list(run.glob(".lease*"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_within_seconds_in_one_line_and_the_requeued_job_resumes(job, victim):
    killed = job("42", "trainer.max_steps=60", "checkpoint.every_n_steps=5", "logger=none")
    killed.start()
    killed.wait_for_step(6)
    killed.ranks[victim].kill()
    start = time.monotonic()
    codes, _, errors = killed.end()
    assert time.monotonic() - start < 20
    assert (codes[victim], codes[1 - victim]) == (-9, 1)
    assert errors.count("\n") == 1
    assert summary(only_run())["state"] == "failed"
    assert errors == f"error: {summary(only_run())['error']}\n"
    killed.start()
    codes, _, errors = killed.end()
    assert (codes, errors) == ([0, 0], "")
    assert checkpoint(only_run())["global_step"] == 60
    trained = [int(row["step"]) for row in metrics(only_run()) if row["train/loss"]]
    assert trained == list(range(1, 61))


def test_a_job_that_began_from_weights_is_requeued_with_the_same_words(job):
    pretrained = job("41", "trainer.max_steps=1000", "logger=none", "name=first", "runs=before")
    pretrained.start()
    pretrained.wait_for_step(2, "before")
    pretrained.ranks[1].send_signal(signal.SIGTERM)  # which reaches the first
    assert pretrained.end()[0] == [75, 75]
    (weights,) = Path("before").glob("2*/*/checkpoints/last.ckpt")
    tuned = job("42", "model=vit", f"backbone.weights={weights}", "logger=none", "trainer.max_steps=40")
    tuned.start()
    tuned.wait_for_step(4)
    tuned.ranks[0].send_signal(signal.SIGTERM)
    codes, _, errors = tuned.end()
    assert (codes, errors) == ([75, 75], "")
    tuned.start()
    codes, _, errors = tuned.end()
    assert (codes, errors) == ([0, 0], "")
    assert checkpoint(only_run())["global_step"] == 40


def test_ckpt_last_is_what_the_first_rank_finds(job):
    first = job("41", "trainer.max_steps=2", "logger=none")
    first.start()
    assert first.end()[0] == [0, 0]
    second = job("42", "ckpt=last", "trainer.max_steps=4", "+trainer.enable_checkpointing=true")
    second.start(apart=1)
    codes, _, errors = second.end()
    assert (codes, errors) == ([0, 0], "")
    assert checkpoint(only_run())["global_step"] == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.mask_ratio=2"], "model.mask_ratio"),
        (["ckpt=nowhere"], "ckpt=nowhere"),
        (["-m", "model.mask_ratio=0.5,0.75"], "-m: "),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn"),
    ],
)
def test_a_mistake_is_told_once_and_ends_both_ranks_with_its_code(job, words, line):
    wrong = job("42", *words)
    wrong.start()
    codes, _, errors = wrong.end()
    assert codes[0] == 2
    assert codes[1] in (1, 2)
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert line in errors


def test_ranks_that_torchrun_starts_share_one_run_and_a_restart_by_torchrun_resumes_it(tmp_path):
    dying = tmp_path / "dying.py"
    dying.write_text(
        "import os, sys\n"
        "from lightning import Callback\n"
        "from vitmae import train\n"
        "from vitmae.training.step_log import StepLog\n"
        "def die(self, trainer, *args):\n"
        "    if trainer.global_step == 8 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and trainer.global_rank:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    log(self, trainer, *args)\n"
        "log, StepLog.on_train_batch_end = StepLog.on_train_batch_end, die\n"
        "sys.exit(train.main())\n"
    )
    starter = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--rdzv-id=job7"]
    starter += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(dying)]
    settings = [*TINY, "logger=none", "trainer.max_steps=20", "checkpoint.every_n_steps=3"]
    command = [sys.executable, *starter, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = only_run()
    assert decided_settings(run)["ckpt"] == str((run / "checkpoints" / "last.ckpt").absolute())
    assert checkpoint(run)["global_step"] == 20
    assert [int(row["step"]) for row in metrics(run)][-1] == 20
