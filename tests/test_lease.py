import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vitmae import lease as module
from vitmae.errors import UserError
from vitmae.lease import Holder, Watch, give_back, holding, is_held, start_of, take

HOLD = "import sys, time; from pathlib import Path; from vitmae import lease; lease.BEAT_S = 0.05\n"
HOLD += "with lease.holding(Path(sys.argv[1]), 'runs/a'):\n    print('held', flush=True); time.sleep(60)"
TAKE = "import sys; from pathlib import Path; from vitmae.lease import take\n"
TAKE += "print(flush=True); input()\ntake(Path(sys.argv[1]), 'runs/a'); print('taken', flush=True); input()"
ELSEWHERE = Holder("node7", "another boot", 123, "456", "2026-11-24 10:00:00")


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".lease"


@pytest.fixture
def processes():
    """Starts processes in this test; none survives it."""
    started = []

    def start(code, file):
        command = [sys.executable, "-c", code, str(file)]
        started.append(subprocess.Popen(command, text=True, stdin=-1, stdout=-1, stderr=-1, cwd=Path.cwd()))
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def write(file, holder):
    file.write_text(json.dumps(asdict(holder)) + "\n")


def test_a_second_process_is_refused_in_a_line_that_names_the_first(file, processes):
    first = processes(HOLD, file)
    with pytest.raises(UserError, match=rf"^runs/a is in use by process {first.pid} on \S+ \(since 2.*\): wait until"):
        take(file, "runs/a")
    assert is_held(file)


def test_the_lease_of_a_killed_process_is_free_at_once_even_before_its_parent_knows(file, processes):
    first = processes(HOLD, file)
    first.send_signal(signal.SIGKILL)
    while start_of(first.pid) is not None:
        time.sleep(0.01)
    assert first.returncode is None  # nobody has waited for it
    assert not is_held(file)
    take(file, "runs/a")
    assert is_held(file)


def test_a_process_with_the_same_number_is_another_one(file):
    write(file, replace(Holder.this_process(), started="1"))
    assert Watch(file).look() == "dead"


def test_a_process_takes_its_own_lease_again_and_gives_it_back(file):
    take(file, "runs/a")
    with holding(file, "runs/a"):
        assert is_held(file)
    assert not file.exists()


def test_the_lease_of_another_machine_is_free_when_it_was_not_touched_for_the_time_that_the_line_says(
    file, monkeypatch, caplog
):
    monkeypatch.setattr(module, "DEAD_AFTER_S", 1.0)
    write(file, ELSEWHERE)
    start = time.monotonic()
    take(file, "runs/a")
    assert time.monotonic() - start >= 1
    assert "process 123 on node7 (since 2026-11-24 10:00:00)" in caplog.text
    assert "waiting up to 1 s" in caplog.text
    assert is_held(file)


def test_a_process_on_another_machine_that_touches_its_lease_is_alive_whatever_its_clock_says(file, monkeypatch):
    monkeypatch.setattr(module, "DEAD_AFTER_S", 20.0)
    write(file, ELSEWHERE)
    os.utime(file, (1000, 1000))
    threading.Timer(0.3, lambda: os.utime(file, (2000, 2000))).start()
    with pytest.raises(UserError, match="process 123 on node7"):
        take(file, "runs/a")


def test_a_lease_whose_writer_was_killed_before_its_first_word_is_free_after_a_while(file, monkeypatch):
    monkeypatch.setattr(module, "DEAD_AFTER_S", 0.3)
    file.touch()
    take(file, "runs/a")
    assert is_held(file)


def test_of_many_processes_that_want_the_lease_of_a_dead_one_exactly_one_gets_it(file, processes):
    write(file, replace(Holder.this_process(), started="1"))
    rivals = [processes(TAKE, file) for _ in range(6)]
    for rival in rivals:
        rival.stdin.write("\n")
        rival.stdin.flush()
    answers = [rival.stdout.readline() for rival in rivals]
    assert sorted(answers) == [""] * 5 + ["taken\n"]
    (winner,) = (rival for rival, answer in zip(rivals, answers, strict=True) if answer)
    assert json.loads(file.read_text())["pid"] == winner.pid
    assert os.listdir(file.parent) == [file.name]


def test_a_process_that_is_late_does_not_take_away_the_lease_that_another_has_taken_meanwhile(file):
    write(file, replace(Holder.this_process(), started="1"))
    late = Watch(file)
    Watch(file).take_away()
    take(file, "runs/a")
    late.take_away()
    assert is_held(file)


def test_only_the_holder_gives_a_lease_back(file):
    write(file, ELSEWHERE)
    give_back(file)
    assert file.exists()


def test_a_holder_touches_its_lease_and_creates_it_again_if_somebody_removes_it(file, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    with holding(file, "runs/a"):
        os.utime(file, (1000, 1000))
        while file.stat().st_mtime == 1000:
            time.sleep(0.01)
        file.unlink()
        while not file.exists():
            time.sleep(0.01)
    assert not file.exists()


def test_a_process_whose_lease_was_taken_ends_in_one_line(file, processes):
    first = processes(HOLD, file)
    write(file, ELSEWHERE)
    _, err = first.communicate(timeout=30)
    assert (first.returncode, err) == (
        1,
        "error: runs/a was taken by process 123 on node7 (since 2026-11-24 10:00:00): ends\n",
    )
