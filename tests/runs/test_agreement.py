import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from vitmae.errors import LostRank
from vitmae.interruption import Interrupted, interruption
from vitmae.runs.agreement import Agreement, decided_settings
from vitmae.runs.directory import LAUNCHES, RunDirectory
from vitmae.runs.launch import Launch

FIRST = Launch(0, separate=True, key="slurm-42", world=4, meeting="slurm-42")


def rank(number, first=FIRST):
    return replace(first, rank=number)


def answer(runs, directory, first=FIRST, after=0.0, limit_s=20):
    time.sleep(after)
    directory.mkdir(exist_ok=True)
    Agreement(first, runs).answer({"directory": str(directory)}, limit_s)


def ask(runs, launch, after=0.0, limit_s=20):
    time.sleep(after)
    return Agreement(launch, runs).ask(limit_s)


@pytest.mark.parametrize("delays", [(0, 0.3, 0.6, 0), (0.6, 0, 0.3, 0)])
def test_all_ranks_get_the_directory_of_the_first_however_far_apart_they_start(tmp_path, delays):
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(answer, tmp_path, tmp_path / "a", after=delays[0])
        others = [pool.submit(ask, tmp_path, rank(number), delays[number]) for number in (1, 2, 3)]
        first.result()
        assert [other.result() for other in others] == [tmp_path / "a"] * 3
    assert not (tmp_path / LAUNCHES / "slurm-42").exists()  # nothing is left
    assert {f".lease.rank{number}" for number in (1, 2, 3)} <= set(os.listdir(tmp_path / "a"))


def test_what_an_earlier_attempt_left_deceives_no_rank(tmp_path):
    folder = tmp_path / LAUNCHES / "slurm-42"
    folder.mkdir(parents=True)
    (folder / "answer.json").write_text(json.dumps({"directory": str(tmp_path / "old"), "to": {"rank1": "1"}}))
    for number in (1, 2, 3):
        (folder / f"rank{number}.question").write_text("1")  # of ranks that were killed
    with ThreadPoolExecutor(4) as pool:
        pool.submit(answer, tmp_path, tmp_path / "new", after=0.3)
        others = [pool.submit(ask, tmp_path, rank(number), 0.2 * number) for number in (1, 2, 3)]
        assert [other.result() for other in others] == [tmp_path / "new"] * 3


def test_ranks_of_torchrun_connect_through_a_store_that_ends_with_this_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # one store for all restarts
    monkeypatch.setenv("MASTER_PORT", "1")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, tmp_path, rank(1))
        answer(tmp_path, tmp_path / "a", replace(FIRST, world=2))
        other.result()
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    assert 1 < int(os.environ["MASTER_PORT"]) < 65536


def test_two_jobs_with_one_command_at_the_same_time_agree_each_for_itself(tmp_path):
    jobs = [replace(FIRST, key=name, meeting=name, world=2) for name in ("slurm-42", "slurm-43")]
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ask, tmp_path, rank(1, job)) for job in jobs]
        for job in jobs:
            pool.submit(answer, tmp_path, tmp_path / job.key, job)
        assert [other.result() for other in others] == [tmp_path / job.key for job in jobs]


def test_a_rank_that_never_asks_ends_the_first_in_one_line_after_the_limit(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for number in (1, 2):
            pool.submit(ask, tmp_path, rank(number))
        with pytest.raises(
            LostRank, match=r"^1 of 4 processes did not report to the first within 1 s: see their output"
        ):
            answer(tmp_path, tmp_path / "a", limit_s=1)


def test_a_first_rank_that_never_answers_ends_the_others_in_one_line_after_the_limit(tmp_path):
    with pytest.raises(LostRank, match=r"^the first process has not answered process 1 within 0 s: see its output"):
        ask(tmp_path, rank(1), limit_s=0.3)
    assert os.listdir(tmp_path / LAUNCHES / "slurm-42") == []


def test_a_first_rank_that_ends_before_it_has_decided_ends_the_others_with_its_exit_code(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Agreement(replace(FIRST, world=2), tmp_path).end, 2)
        with pytest.raises(SystemExit) as end:
            ask(tmp_path, rank(1))
    assert end.value.code == 2


@pytest.mark.parametrize(("code", "ending"), [(75, Interrupted), (1, LostRank)])
def test_another_rank_that_ends_before_it_has_asked_ends_the_first_and_the_others(tmp_path, code, ending):
    launch = replace(FIRST, world=3)
    Agreement(rank(1, launch), tmp_path).end(code)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, tmp_path, rank(2, launch))
        with pytest.raises(ending), interruption.answered():
            answer(tmp_path, tmp_path / "a", launch)
        with pytest.raises(SystemExit) as end:
            other.result()
    assert end.value.code == code


def test_a_rank_that_was_interrupted_while_it_asked_ends_too(tmp_path):
    launch = replace(FIRST, world=2)
    other = Agreement(rank(1, launch), tmp_path)
    question = tmp_path / LAUNCHES / "slurm-42" / "rank1.question"
    question.parent.mkdir(parents=True)
    question.write_text("1")
    other.end(75)
    with pytest.raises(Interrupted), interruption.answered():
        answer(tmp_path, tmp_path / "a", launch)
    assert not list(tmp_path.glob(f"{LAUNCHES}/*"))


def test_a_rank_that_ended_in_an_earlier_attempt_ends_no_later_one(tmp_path):
    launch = replace(FIRST, world=2)
    Agreement(rank(1, launch), tmp_path).end(75)
    again = replace(launch, attempt=1)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, tmp_path, rank(1, again), 0.3)
        answer(tmp_path, tmp_path / "a", again)
        assert other.result() == tmp_path / "a"


def test_ranks_that_have_agreed_are_not_refused_at_the_end(tmp_path):
    first = Agreement(replace(FIRST, world=1), tmp_path)
    first.answer({"directory": str(tmp_path)})
    first.end(1)
    assert not list(tmp_path.glob(f"{LAUNCHES}/*/*"))


def test_the_decision_is_what_the_first_rank_saved(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 2\nckpt: null\n")  # of an earlier start
    RunDirectory(tmp_path).save_start("seed: 3\nckpt: /a/last.ckpt\n")
    assert decided_settings(tmp_path) == {"seed": 3, "ckpt": "/a/last.ckpt"}
