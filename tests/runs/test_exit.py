import errno
import json
import os

import pytest

from tests.training.standin import new_run
from vitmae.errors import LostRank, UserError
from vitmae.interruption import Interrupted
from vitmae.runs.directory import RunDirectory
from vitmae.runs.exit import ending, record_failure, report, short
from vitmae.runs.launch import Launch

CHILD, SEPARATE = Launch(rank=1), Launch(rank=1, separate=True, key="slurm-1")


def test_a_mistake_of_the_users_is_one_line_and_code_2(capsys):
    assert report(UserError("a\n  b")) == 2
    assert capsys.readouterr().err == "error: a b\n"


def test_a_fault_keeps_its_traceback_and_is_code_1(capsys):
    assert report(ZeroDivisionError("x")) == 1
    assert capsys.readouterr().err.endswith("ZeroDivisionError: x\n")


def test_a_lost_rank_is_one_line_and_code_1(capsys):
    assert report(LostRank("the first process has not answered")) == 1
    assert capsys.readouterr().err == "error: the first process has not answered\n"


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


FULL = OSError(errno.ENOSPC, "No space left on device", "a.ckpt")


def test_a_fault_of_the_machine_is_one_line_with_its_traceback_in_the_directory(tmp_path, capsys):
    run = new_run(tmp_path)
    with pytest.raises(OSError, match="No space"), ending(run, Launch()):
        raise FULL
    assert report(FULL) == 1
    line = "no space is left on the disk of a.ckpt: free some, or choose another place"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert run.summary()["error"] == line
    assert "raise FULL" in (tmp_path / "traceback.txt").read_text()


def test_an_error_that_cannot_be_recorded_is_still_the_one_that_is_told(tmp_path, monkeypatch):
    def fail(*given, **others):
        raise OSError(errno.EROFS, "Read-only file system")

    run = new_run(tmp_path)
    for name in ("record", "save_traceback"):
        monkeypatch.setattr(RunDirectory, name, fail)
    with pytest.raises(ZeroDivisionError), ending(run, Launch()):
        _ = 1 / 0


def test_the_command_that_resumes_is_told_if_there_is_a_checkpoint(tmp_path, caplog):
    caplog.set_level("INFO")
    run = new_run(tmp_path)
    for exists in (False, True):
        caplog.clear()
        if exists:
            run.checkpoints.mkdir(exist_ok=True)
            run.last.touch()
        with pytest.raises(OSError, match="No space"), ending(run, Launch()):
            raise FULL
        assert (f"python -m vitmae.train ckpt={tmp_path}" in caplog.text) == exists


def test_an_interrupted_run_ends_in_75_and_says_how_to_go_on(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    run = new_run(tmp_path / "runs" / "a run")
    run.last.touch()
    with pytest.raises(SystemExit) as end, ending(run, Launch()):
        raise Interrupted(step=120)
    assert end.value.code == 75
    assert run.summary()["state"] == "interrupted"
    assert "stopped after step 120; to resume: python -m vitmae.train 'ckpt=runs/a run'" in caplog.text


@pytest.mark.parametrize(("launch", "code"), [(CHILD, 0), (SEPARATE, 75)])
def test_other_ranks_end_as_their_starter_expects_and_are_silent(tmp_path, caplog, launch, code):
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as end, ending(new_run(tmp_path), launch):
        raise Interrupted(step=120)
    assert end.value.code == code
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("has_checkpoint", "step", "said"),
    [
        (False, None, "stopped before the first checkpoint; to start again: python"),
        (True, None, "stopped; to resume: python"),
    ],
)
def test_an_interruption_before_the_first_step_says_how_to_go_on(tmp_path, caplog, has_checkpoint, step, said):
    caplog.set_level("INFO")
    run = new_run(tmp_path)
    if has_checkpoint:
        run.last.touch()
    with pytest.raises(SystemExit), ending(run, Launch()):
        raise Interrupted(step=step)
    assert run.summary()["state"] == "interrupted"
    assert said in caplog.text


def test_a_failure_is_kept_in_one_line(tmp_path):
    run = new_run(tmp_path)
    record_failure(run, "Traceback\n  line 1\nValueError: x", 1, "")
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == "ValueError: x"


def test_a_path_is_shown_as_the_user_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(short(tmp_path / "runs" / "a")) == os.path.join("runs", "a")
    assert short(tmp_path.parent / "elsewhere") == tmp_path.parent / "elsewhere"
