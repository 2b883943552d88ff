import json
import os
import signal

import pytest

from tests.comparison.parts import finish, planned
from vitmae.comparison import carry_out as module
from vitmae.comparison.carry_out import Stopped, best_accuracy, carry_out, chosen, is_done, seconds_of


class Process:
    """Stands for `python -m vitmae.<module> <words>`."""

    def __init__(self, jobs, codes, started, words, stdout, **others):
        self.job = next(job for job in jobs if str(job.place) in words[-1] or words[-1] == f"ckpt={job.place}")
        self.code = codes.get(self.job.stage, 0)
        started.append((self.job.name, words[3:]))
        if self.code == 0:
            finish(self.job, accuracy=0.7 if self.job.base_lr == 2e-3 else 0.5)
        else:
            os.write(stdout.fileno(), b"loading\nerror: no such thing\n")

    def wait(self):
        return self.code

    def poll(self):
        return self.code


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Carry out a plan with stand-ins; returns (names of the jobs started, their words, failures)."""

    def go(codes=(), **changed):
        _, rows = planned(tmp_path, **changed)
        jobs = [job for row in rows for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers) if job]
        started, failures = [], {}
        monkeypatch.setattr(
            module.subprocess, "Popen", lambda words, **given: Process(jobs, dict(codes), started, words, **given)
        )
        done = list(carry_out(rows, tmp_path, failures))
        return rows, started, failures, done

    return go


def test_everything_is_done_once_and_nothing_twice(run, tmp_path):
    rows, started, failures, done = run()
    assert len(started) == 2 * (3 + 4)
    assert not failures
    assert done == rows
    assert all(is_done(job) for row in rows for job in (*row.finetunes, row.probes, chosen(row)))
    assert run()[1] == []


def test_more_seeds_add_to_what_is_there(run):
    run()
    assert {name.split(", ")[1] for name, _ in run(seeds=[0, 1, 2])[1]} == {"seed 2"}


def test_only_the_best_rate_on_validation_images_meets_the_test_images(run):
    rows, started, _, _ = run(base_lrs=[1e-3, 2e-3], seeds=[0], methods=["scratch"])
    assert [name for name, _ in started if "classifier" in name] == ["scratch, seed 0, classifier at 0.002"]
    assert chosen(rows[0]).base_lr == 2e-3


def test_the_accuracy_that_counts_is_that_of_the_checkpoint_that_is_evaluated(tmp_path):
    _, rows = planned(tmp_path)
    finish(rows[0].finetunes[0], best=0.8)
    assert best_accuracy(rows[0].finetunes[0]) == 0.8, "the best epoch's, not the last"


def test_a_failure_stops_what_needs_it_and_nothing_else(run):
    _, started, failures, done = run({"pretrain": 2})
    assert [name for name, _ in started if name.startswith("mae")] == ["mae, seed 0, pretrain", "mae, seed 1, pretrain"]
    assert sum(name.startswith("scratch") for name, _ in started) == 6
    assert set(failures.values()) == {"no such thing"}
    assert len(done) == 4
    assert len(run()[1]) == 8, "what failed is tried again"


def test_a_run_that_was_begun_is_gone_on_with(run, tmp_path):
    _, rows = planned(tmp_path)
    begun = rows[0].finetunes[0].place
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "checkpoints" / "last.ckpt").touch()
    lost = rows[1].pretrain.place
    lost.mkdir(parents=True)
    (lost / "train.log").write_text("no checkpoint yet")
    words = None

    class Stop(Exception):
        pass

    assert module._arguments(rows[0].finetunes[0]) == [f"ckpt={begun}"]
    words = module._arguments(rows[1].pretrain)
    assert words == rows[1].pretrain.arguments
    assert not lost.exists()
    assert (lost.with_name(f"{lost.name}.stopped1") / "train.log").exists(), "nothing is lost"


def test_an_interrupted_job_stops_the_comparison(run):
    with pytest.raises(Stopped):
        run({"finetune": 75})


def test_a_signal_is_handed_on_and_handlers_are_given_back(tmp_path, monkeypatch):
    _, rows = planned(tmp_path)
    sent = []

    class Waiting:
        def __init__(self, words, **given):
            pass

        def wait(self):
            os.kill(os.getpid(), signal.SIGINT)
            return 75

        def poll(self):
            return None

        def send_signal(self, number):
            sent.append(number)

    monkeypatch.setattr(module.subprocess, "Popen", Waiting)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        list(carry_out(rows, tmp_path, {}))
    assert sent == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is before


def test_wall_time_adds_up_over_attempts(tmp_path):
    _, rows = planned(tmp_path)
    job = rows[0].finetunes[0]
    assert seconds_of(job, tmp_path) is None
    record = module._record(job, tmp_path)
    record.parent.mkdir(parents=True)
    for seconds in (2.0, 3.0):
        module._add_seconds(record, seconds)
    assert seconds_of(job, tmp_path) == 5.0
    assert json.loads(record.read_text()) == {"seconds": 5.0}
