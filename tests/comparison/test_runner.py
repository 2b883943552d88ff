import json
import os
import signal
import subprocess

import pytest

from tests.comparison.parts import finish, planned
from vitmae.comparison import runner as module
from vitmae.comparison.runner import best_accuracy, best_classifier, is_done, run_jobs, seconds_of
from vitmae.errors import UserError
from vitmae.interruption import Interrupted, interruption


class Process:
    """Stands for `python -m vitmae.<module> <overrides>`."""

    pid = os.getpid()

    def __init__(self, jobs, codes, started, overrides, stdout, **others):
        self.job = next(job for job in jobs if str(job.place) in overrides[-1] or overrides[-1] == f"ckpt={job.place}")
        self.code = codes.get(self.job.stage, 0)
        started.append((self.job.name, overrides[3:]))
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
    """Carry out a plan with stand-ins; returns (names of the jobs started, their overrides, failures)."""

    def go(codes=(), **changed):
        _, rows = planned(tmp_path, **changed)
        jobs = [job for row in rows for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers) if job]
        started, failures = [], {}
        monkeypatch.setattr(
            module.subprocess,
            "Popen",
            lambda overrides, **given: Process(jobs, dict(codes), started, overrides, **given),
        )
        done = list(run_jobs(rows, tmp_path, failures))
        return rows, started, failures, done

    return go


def test_everything_is_done_once_and_nothing_twice(run, tmp_path):
    rows, started, failures, done = run()
    assert len(started) == 2 * (3 + 4)
    assert not failures
    assert done == rows
    assert all(is_done(job) for row in rows for job in (*row.finetunes, row.probes, best_classifier(row)))
    assert run()[1] == []


def test_more_seeds_add_to_what_is_there(run):
    run()
    assert {name.split(", ")[1] for name, _ in run(seeds=[0, 1, 2])[1]} == {"seed 2"}


def test_only_the_best_rate_on_validation_images_meets_the_test_images(run):
    rows, started, _, _ = run(base_lrs=[1e-3, 2e-3], seeds=[0], methods=["scratch"])
    assert [name for name, _ in started if "classifier" in name] == ["scratch, seed 0, classifier at 0.002"]
    assert best_classifier(rows[0]).base_lr == 2e-3


def test_of_equal_rates_the_first_is_chosen(tmp_path):
    _, rows = planned(tmp_path, base_lrs=[1e-3, 2e-3, 5e-4])
    for finetune, accuracy in zip(rows[0].finetunes, (0.4, 0.6, 0.6), strict=True):
        assert best_classifier(rows[0]) is None
        finish(finetune, accuracy)
    assert best_classifier(rows[0]) is rows[0].classifiers[1]


def test_the_accuracy_that_counts_is_that_of_the_checkpoint_that_is_evaluated(tmp_path):
    _, rows = planned(tmp_path)
    finish(rows[0].finetunes[0], best=0.8)
    assert best_accuracy(rows[0].finetunes[0]) == 0.8, "the best epoch's, not the last"


def test_an_evaluation_counts_if_its_file_is_whole_and_of_the_run_that_is_there(tmp_path):
    _, rows = planned(tmp_path)
    row = rows[0]
    finish(row.finetunes[0])
    (row.finetunes[0].place / "summary.json").write_text('{"state": "finished", "id": "first"}')
    assert not is_done(row.probes)
    finish(row.probes)
    assert is_done(row.probes), "earlier versions wrote no id"
    about = json.loads(row.probes.place.read_text())
    for run, counts in (("first", True), ("deleted since, and trained again", False)):
        row.probes.place.write_text(json.dumps({**about, "run": run}))
        assert is_done(row.probes) == counts
    for length in (0, 1, 100):
        row.probes.place.write_text(json.dumps(about)[:length])
        assert not is_done(row.probes)


def test_a_damaged_evaluation_is_run_again(run, tmp_path):
    rows = run()[0]
    rows[0].probes.place.write_text("{")
    assert [name for name, _ in run()[1]] == ["scratch, seed 0, probes"]
    assert is_done(rows[0].probes)


def test_a_failure_stops_what_needs_it_and_nothing_else(run):
    _, started, failures, done = run({"pretrain": 2})
    assert [name for name, _ in started if name.startswith("mae")] == ["mae, seed 0, pretrain", "mae, seed 1, pretrain"]
    assert sum(name.startswith("scratch") for name, _ in started) == 6
    assert set(failures.values()) == {"no such thing"}
    assert len(done) == 4
    assert len(run()[1]) == 8, "what failed is tried again"


def test_probes_of_the_untrained_encoder_wait_for_the_run_that_they_read(run):
    _, started, failures, _ = run({"finetune": 2}, methods=["scratch"], seeds=[0])
    assert [name for name, _ in started] == ["scratch, seed 0, finetune"]
    assert len(failures) == 1


def test_a_job_that_was_killed_is_not_quoted(run):
    assert set(run({"pretrain": -9})[2].values()) == {"killed by SIGKILL, perhaps out of memory"}


def test_a_signal_between_two_jobs_starts_no_other(tmp_path, monkeypatch):
    _, rows = planned(tmp_path)
    for job in (*rows[0].finetunes, rows[0].probes, *rows[0].classifiers):
        finish(job)
    monkeypatch.setattr(module.subprocess, "Popen", lambda overrides, **given: pytest.fail("another job was started"))
    with pytest.raises(Interrupted), interruption.answered():
        for _ in run_jobs(rows, tmp_path, {}):
            os.kill(os.getpid(), signal.SIGTERM)


def test_two_comparisons_do_not_work_in_one_folder(tmp_path):
    _, rows = planned(tmp_path)
    for row in rows:
        for job in (row.pretrain, *row.finetunes, row.probes, *row.classifiers):
            if job:
                finish(job)
    first = run_jobs(rows, tmp_path, {})
    next(first)
    with pytest.raises(UserError, match=f"still running there.*kill {os.getpid()}$"):
        next(run_jobs(rows, tmp_path, {}))
    first.close()
    assert len(list(run_jobs(rows, tmp_path, {}))) == len(rows)


def test_a_job_that_outlives_its_comparison_keeps_the_folder(tmp_path, monkeypatch):
    _, rows = planned(tmp_path)
    started = []

    class Sleeping(subprocess.Popen):
        def __init__(self, overrides, **given):
            super().__init__(["sleep", "60"], **given)
            started.append(self)

        def wait(self, timeout=None):
            raise KeyError("the comparison dies")

    monkeypatch.setattr(module.subprocess, "Popen", Sleeping)
    with pytest.raises(KeyError):
        list(run_jobs(rows, tmp_path, {}))
    with pytest.raises(UserError, match="one of its jobs is still running"):
        list(run_jobs(rows, tmp_path, {}))
    started[0].kill()
    super(Sleeping, started[0]).wait()
    with pytest.raises(KeyError):
        list(run_jobs(rows, tmp_path, {}))
    started[1].kill()
    super(Sleeping, started[1]).wait()


def test_a_begun_run_resumes(run, tmp_path):
    _, rows = planned(tmp_path, own_code=["trust=[mine.objective.Mine]"])
    begun = rows[0].finetunes[0].place
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "checkpoints" / "last.ckpt").touch()
    lost = rows[1].pretrain.place
    lost.mkdir(parents=True)
    (lost / "train.log").write_text("no checkpoint yet")
    assert module._arguments(rows[0].finetunes[0]) == ["trust=[mine.objective.Mine]", f"ckpt={begun}"]
    overrides = module._arguments(rows[1].pretrain)
    assert overrides == rows[1].pretrain.arguments
    assert not lost.exists()
    assert (lost.with_name(f"{lost.name}.stopped1") / "train.log").exists(), "nothing is lost"


def test_an_interrupted_job_stops_the_comparison(run):
    with pytest.raises(Interrupted):
        run({"finetune": 75})


def test_a_signal_is_handed_on_and_the_job_is_waited_for(tmp_path, monkeypatch):
    _, rows = planned(tmp_path)
    did = []

    class Waiting:
        pid = os.getpid()

        def __init__(self, command, **given):
            os.kill(os.getpid(), signal.SIGINT)  # as early as can be: the job must not be forgotten

        def terminate(self):
            did.append("terminate")

        def wait(self):
            did.append("wait")

    monkeypatch.setattr(module.subprocess, "Popen", Waiting)
    with pytest.raises(Interrupted), interruption.answered():
        list(run_jobs(rows, tmp_path, {}))
    assert did == ["terminate", "wait"]


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
