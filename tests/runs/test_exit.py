import json
import os
import subprocess
import sys

import pytest

from tests.training.standin import new_run
from vitmae.errors import UserError
from vitmae.runs.exit import ending, record_failure, report, short
from vitmae.runs.interruption import Interrupted
from vitmae.runs.launch import Launch

CHILD, SEPARATE = Launch(rank=1), Launch(rank=1, separate=True, key="slurm-1")


def test_a_mistake_of_the_users_is_one_line_and_code_2(capsys):
    assert report(UserError("a\n  b")) == 2
    assert capsys.readouterr().err == "error: a b\n"


def test_a_fault_keeps_its_traceback_and_is_code_1(capsys):
    assert report(ZeroDivisionError("x")) == 1
    assert capsys.readouterr().err.endswith("ZeroDivisionError: x\n")


def test_a_run_that_fails_says_so_in_its_directory(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(UserError), ending(run, Launch()):
        raise UserError("no such image")
    assert (run.summary()["state"], run.summary()["error"]) == ("failed", "no such image")
    assert not (tmp_path / "traceback.txt").exists()


def test_a_fault_leaves_its_traceback_in_the_directory(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(ZeroDivisionError), ending(run, Launch()):
        _ = 1 / 0
    assert run.summary()["error"] == "ZeroDivisionError: division by zero"
    assert "_ = 1 / 0" in (tmp_path / "traceback.txt").read_text()


def test_an_interrupted_run_ends_in_75_and_says_how_to_go_on(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    run = new_run(tmp_path / "runs" / "a run")
    with pytest.raises(SystemExit) as end, ending(run, Launch()):
        raise Interrupted(120)
    assert end.value.code == 75
    assert run.summary()["state"] == "interrupted"
    assert "stopped after step 120; to resume: python -m vitmae.train 'ckpt=runs/a run'" in caplog.text


@pytest.mark.parametrize(("launch", "code"), [(CHILD, 0), (SEPARATE, 75)])
def test_other_ranks_end_as_their_starter_expects_and_are_silent(tmp_path, caplog, launch, code):
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as end, ending(new_run(tmp_path), launch):
        raise Interrupted(120)
    assert end.value.code == code
    assert caplog.text == ""


def test_ctrl_c_before_the_first_step_is_an_interruption_too(tmp_path):
    run = new_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), ending(run, Launch()):
        raise KeyboardInterrupt
    assert run.summary()["state"] == "interrupted"


TWO_RANKS = """
import sys, threading, time
sys.path.insert(0, {root!r})
from vitmae.errors import UserError
from vitmae.runs import exit as module
from vitmae.runs.launch import Launch
from vitmae.runs.directory import RunDirectory
from pathlib import Path

run = RunDirectory(Path({path!r}), is_writer={rank} == 0)
if {rank} == 0:
    with module.ending(run, Launch()), module.watching_ranks(run, lambda: print("ended the others", flush=True)):
        time.sleep(60)  # a collective, in which nobody else takes part
else:
    module._WAIT_S = 1
    with module.ending(run, Launch(rank=1)):
        {error}
"""


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        ("raise UserError('no such image')", 2, "error: no such image"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_rank_that_fails_ends_the_first_with_its_own_words(tmp_path, error, code, last_line):
    run = new_run(tmp_path)
    facts = {"root": os.getcwd(), "path": str(tmp_path), "error": error}
    first, other = (
        subprocess.Popen([sys.executable, "-c", TWO_RANKS.format(**facts, rank=rank)], text=True, stdout=-1, stderr=-1)
        for rank in (0, 1)
    )
    out, err = first.communicate(timeout=30)
    assert first.returncode == code
    assert err.splitlines()[-1] == last_line
    assert out == "ended the others\n"
    assert other.communicate(timeout=30) == ("", "")
    assert other.returncode == code
    assert run.summary()["state"] == "failed"
    assert run.summary()["error"] in last_line


def test_a_failure_is_kept_in_one_line(tmp_path):
    run = new_run(tmp_path)
    record_failure(run, "Traceback\n  line 1\nValueError: x", 1)
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == "ValueError: x"


def test_a_path_is_shown_as_the_user_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(short(tmp_path / "runs" / "a")) == os.path.join("runs", "a")
    assert short(tmp_path.parent / "elsewhere") == tmp_path.parent / "elsewhere"
