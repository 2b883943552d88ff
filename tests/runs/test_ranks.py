import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.standin import new_run
from vitmae.lease import holding
from vitmae.runs.directory import lease_of
from vitmae.runs.launch import Launch
from vitmae.runs.ranks import taking_part, watching_others

SEPARATE = """
import sys, time
from pathlib import Path
from vitmae.errors import UserError
from vitmae.runs import exit as ending_of_runs, ranks
from vitmae.runs.directory import RunDirectory
from vitmae.runs.launch import Launch

ending_of_runs._WAIT_S = 20
run, launch = RunDirectory(Path({path!r}), is_writer={rank} == 0), Launch({rank}, separate={separate}, key="slurm-42", world=3)
with ranks.taking_part(run, launch), ranks.watching_others(run, launch):
    with ending_of_runs.ending(run, launch), ranks.cause_first(launch):
        print("ready", flush=True)
        sys.stdin.readline()
        {work}
"""
STARTER = """
import subprocess, sys, time
from pathlib import Path
from vitmae.runs import ranks
from vitmae.runs.directory import RunDirectory
from vitmae.runs.exit import ending
from vitmae.runs.launch import Launch

run, launch, started = RunDirectory(Path({path!r})), Launch(), []
with ranks.taking_part(run, launch), ending(run, launch):
    with ranks.watching_started(run, lambda: started, lambda: [process.kill() for process in started]):
        started += [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for code in {codes!r}]
        print(*(process.pid for process in started), flush=True)
        time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path)


@pytest.fixture
def rank(tmp_path):
    """Starts a rank that does some work when it is told to, by default one that waits for the others for ever."""
    started = []

    def start(number, work="time.sleep(60)", separate=True):
        code = SEPARATE.format(path=str(tmp_path), rank=number, work=work, separate=separate)
        started.append(subprocess.Popen([sys.executable, "-c", code], text=True, stdin=-1, stdout=-1, stderr=-1))
        assert started[-1].stdout.readline() == "ready\n", started[-1].communicate()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process, go=True):
    if go:
        process.stdin.write("\n")
        process.stdin.flush()
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.parametrize(
    ("work", "code", "last_line"),
    [
        ("raise UserError('no such image')", 2, "error: no such image"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_rank_that_fails_ends_all_in_its_own_words(run, rank, work, code, last_line):
    first, second, third = rank(0), rank(1, work), rank(2)
    assert end(second) == (1, "")
    ended, err = end(first, go=False)
    assert (ended, err.splitlines()[-1]) == (code, last_line)
    assert end(third, go=False) == (1, "")
    assert (run.summary()["state"], run.summary()["error"]) == ("failed", last_line.removeprefix("error: "))


@pytest.mark.parametrize("victim", [1, 2])
def test_a_rank_that_is_killed_ends_all_in_one_line_that_the_run_keeps(run, rank, victim):
    first, *others = rank(0), rank(1), rank(2)
    others[victim - 1].kill()
    code, err = end(first, go=False)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: process {victim} of the run was killed: process {others[victim - 1].pid} on ")
    assert end(others[2 - victim], go=False) == (1, "")
    assert (run.summary()["state"], f"error: {run.summary()['error']}\n") == ("failed", err)


@pytest.mark.parametrize("separate", [True, False])
def test_if_the_first_rank_is_killed_one_of_the_others_records_it_and_all_end(run, rank, separate):
    first, *others = rank(0), rank(1, separate=separate), rank(2, separate=separate)
    first.kill()
    ends = [end(other, go=False) for other in others]
    assert [code for code, _ in ends] == [1, 1]
    (line,) = (err for _, err in ends if err)
    assert line.startswith(f"error: the first process of the run was killed: process {first.pid} on ")
    assert (run.summary()["state"], f"error: {run.summary()['error']}\n") == ("failed", line)
    assert not list(run.path.glob(".lease*"))


def test_a_failure_of_the_first_rank_ends_the_others_silently(run, rank):
    first, other = rank(0, "raise UserError('no such image')"), rank(1)
    code, err = end(first)
    assert (code, err.splitlines()[-1]) == (1, "vitmae.errors.UserError: no such image")  # no command is around it
    assert end(other, go=False) == (1, "")
    assert run.summary()["error"] == "no such image"


def test_a_lost_connection_is_not_told_if_its_cause_is_a_killed_rank(run, rank):
    lost = "raise RuntimeError('[gloo/transport/tcp/pair.cc:534] Connection closed by peer')"
    first, other = rank(0, f"time.sleep(0.5); {lost}"), rank(1)
    first.stdin.write("\n")
    first.stdin.flush()
    other.kill()
    code, err = end(first, go=False)
    assert (code, err.count("\n")) == (1, 1)
    assert "process 1 of the run was killed" in err


def test_ranks_that_have_done_their_part_end_nobody(run, rank):
    first, second, third = rank(0, "time.sleep(1)"), rank(1, "pass"), rank(2, "time.sleep(2)")
    assert end(second) == (0, "")
    third.stdin.write("\n")
    third.stdin.flush()
    assert end(first) == (0, "")
    assert end(third, go=False) == (0, "")
    assert run.summary()["state"] == "running"  # nobody has recorded anything


@pytest.mark.parametrize(
    ("code", "line"),
    [("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("exit(3)", "ended with code 3")],
)
def test_a_process_that_the_first_rank_started_ends_all_when_it_is_killed(run, code, line):
    text = STARTER.format(path=str(run.path), codes=["import time; time.sleep(60)", code])
    first = subprocess.Popen([sys.executable, "-c", text], text=True, stdout=-1, stderr=-1)
    out, err = first.communicate(timeout=30)
    sibling, killed = map(int, out.split())
    assert (first.returncode, err) == (1, f"error: process 2 of the run (pid {killed}) {line}\n")
    assert run.summary()["state"] == "failed"
    while Path(f"/proc/{sibling}").exists():  # killed too: no orphan is left
        time.sleep(0.01)


def test_a_process_alone_starts_no_thread(run):
    before = len(os.listdir("/proc/self/task"))
    with watching_others(run, Launch()):
        assert len(os.listdir("/proc/self/task")) == before


def test_a_second_process_in_a_run_directory_is_refused_and_the_first_goes_on(run, rank):
    first = rank(0, "pass")
    with pytest.raises(Exception, match=f"is in use by process {first.pid} on"), taking_part(run, Launch()):
        pass
    assert end(first) == (0, "")
    with holding(lease_of(run.path, 0), "run"):
        pass


def test_a_killed_first_rank_is_not_recorded_over_a_run_that_has_started_again(run, rank):
    first, other = rank(0), rank(1)
    os.kill(other.pid, signal.SIGSTOP)
    first.kill()
    first.wait()
    again = rank(0)
    os.kill(other.pid, signal.SIGCONT)
    time.sleep(1)
    assert run.summary()["state"] == "running"
    again.kill()
