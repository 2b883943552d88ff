import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from vitmae.atomic import atomic_write
from vitmae.config import config_dir
from vitmae.interruption import Interrupted, Interruption, interruption


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_raises_at_once_and_a_second_one_does_not(number):
    did = []
    with pytest.raises(Interrupted) as stop, interruption.answered():
        try:
            send(number)
        finally:
            send(number)
            did.append("cleaned up")
    assert (stop.value.code, did) == (75, ["cleaned up"])


@pytest.mark.parametrize(("is_resumable", "code"), [(True, 75), (False, 130)])
def test_ctrl_c_is_an_interruption_where_something_is_kept_and_an_end_where_nothing_is(is_resumable, code):
    with pytest.raises(Interrupted) as stop, interruption.answered():
        interruption.is_resumable = is_resumable
        send(signal.SIGINT)
    assert stop.value.code == code


def test_a_deferred_signal_raises_at_the_end_of_the_outermost_block():
    did = []
    with pytest.raises(Interrupted), interruption.answered(), interruption.deferred():
        with interruption.deferred():
            send(signal.SIGTERM)
        did.append("both")
    assert did == ["both"]


def test_a_second_ctrl_c_does_not_wait(capfd):
    did = []
    with pytest.raises(Interrupted) as stop, interruption.answered():
        interruption.is_resumable = True
        interruption.hold()
        send(signal.SIGINT)
        did.append("the first waits")
        send(signal.SIGINT)
        did.append("so does the second")
    assert (stop.value.code, did) == (130, ["the first waits"])
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


def test_a_file_is_whole_although_a_signal_comes_while_it_is_replaced(tmp_path, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (send(signal.SIGTERM), replace(*names)))
    with pytest.raises(Interrupted), interruption.answered(), atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_a_signal_while_a_file_is_written_leaves_nothing_of_it(tmp_path):
    with pytest.raises(Interrupted), interruption.answered(), atomic_write(tmp_path / "a") as file:
        file.write(b"half")
        send(signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_what_swallows_the_exception_does_not_swallow_the_request():
    with pytest.raises(Interrupted), interruption.answered():
        with suppress(BaseException):
            send(signal.SIGTERM)
        interruption.check()


def test_another_rank_tells_the_first_and_does_not_stop_by_itself():
    told = []
    with interruption.answered():
        interruption.pass_on = lambda: told.append("first rank")
        send(signal.SIGTERM)
        interruption.check()
        interruption.release()
        with interruption.deferred():
            pass
    assert told == ["first rank"]


@pytest.mark.parametrize(
    ("environment", "is_child"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}, False),
    ],
)
def test_only_a_rank_that_the_first_has_started_tells_its_parent(monkeypatch, environment, is_child):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (Interruption().pass_on is not None) == is_child


def test_a_forked_worker_ignores_what_its_process_group_receives():
    with interruption.answered():
        if (worker := os.fork()) == 0:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7
        time.sleep(0.1)
        assert not interruption.is_requested


def test_handlers_and_threads_are_given_back():
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    with interruption.answered():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    for _ in range(50):
        if threading.active_count() == threads:
            return
        time.sleep(0.02)
    pytest.fail("a thread still watches")


DEAF = """
import hashlib, time
from vitmae.interruption import interruption

def swallow():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException:
            pass

with interruption.answered(), interruption.last_words(lambda: print("said", flush=True)):
    {wait}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait", ["print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)", "swallow()"]
)
def test_a_main_thread_that_does_not_answer_is_ended(wait):
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF.format(wait=wait)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(config_dir().parent)},
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # it waits now
    process.terminate()
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "said"
    assert process.returncode == 75


ENDED = """
import atexit, sys
from vitmae.interruption import interruption

class Slow:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("collected")

slow = Slow()
atexit.register(print, "exit function")
interruption.end_process(75)
sys.exit(75)
"""


def test_a_process_that_was_interrupted_runs_its_exit_functions_and_collects_nothing():
    done = subprocess.run(
        [sys.executable, "-c", ENDED],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(config_dir().parent)},
    )
    assert (done.returncode, done.stdout) == (75, "exit function\n")
