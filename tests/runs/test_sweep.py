import csv
import json
import os

import pytest

from vitmae.errors import UserError
from vitmae.runs.sweep import Sweep, read_sweep, report_sweep


def job(sweep, name, overrides, **summary):
    folder = sweep / name / ".hydra"
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(json.dumps(overrides))
    if summary:
        (sweep / name / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path):
    """Eleven jobs, so that 10 has to come after 2; one failed, one never began."""
    for number in range(11):
        facts = {"state": "finished", "metrics": {"val/loss": number / 8, "probe/knn": 0.5}}
        if number == 1:
            facts = {"state": "failed", "error": "model.mask_ratio=1 leaves no | visible patch"}
        overrides = ["data=digits", f"model.mask_ratio={number}"] + ["compile=true"] * (number == 2)
        job(tmp_path, f"{number}-x", overrides, **(facts if number != 3 else {}))
    (tmp_path / "multirun.yaml").touch()
    return tmp_path


def test_the_jobs_come_in_their_order_with_what_differs_between_them(sweep):
    rows = read_sweep(sweep)
    assert [row["job"] for row in rows] == [str(number) for number in range(11)]
    assert [row["model.mask_ratio"] for row in rows] == [str(number) for number in range(11)]
    assert [row["compile"] for row in rows[:4]] == ["", "", "true", ""]
    assert "data" not in rows[0]


def test_jobs_that_failed_or_never_began_have_their_rows(sweep):
    rows = read_sweep(sweep)
    assert [row["state"] for row in rows[:4]] == ["finished", "failed", "finished", "not started"]
    assert (rows[1]["val/loss"], rows[1]["error"]) == ("", "model.mask_ratio=1 leaves no | visible patch")
    assert (rows[2]["val/loss"], rows[2]["knn"]) == ("0.25", "0.5")


def test_a_job_that_says_running_and_whose_process_is_gone_was_killed(tmp_path):
    job(tmp_path, "0-x", ["model.mask_ratio=0.5"], state="running")
    assert read_sweep(tmp_path)[0]["state"] == "killed"


def test_a_single_job_shows_its_settings_although_nothing_differs(tmp_path):
    job(tmp_path, "0-x", ["model.mask_ratio=0.5"], state="finished")
    assert read_sweep(tmp_path)[0]["model.mask_ratio"] == "0.5"


def test_the_table_is_printed_and_lies_beside_the_jobs(sweep, capsys):
    assert not report_sweep(sweep)
    printed = capsys.readouterr().out
    assert "11 jobs" in printed
    assert "model.mask_ratio=1 leaves no | visible patch" in printed
    with open(sweep / "sweep.csv", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)][:2] == ["finished", "failed"]
    lines = (sweep / "sweep.md").read_text().splitlines()
    assert len(lines) == 13
    assert lines[0] == "| job | model.mask_ratio | compile | val/loss | knn | state | error |"
    assert "no \\| visible" in lines[3]  # a bar in a cell would end it


def test_a_sweep_has_finished_when_all_its_jobs_have(tmp_path):
    job(tmp_path, "0-x", ["seed=0"], state="finished", metrics={"val/acc1": 0.75})
    assert report_sweep(tmp_path)
    assert (tmp_path / "sweep.csv").read_text().splitlines() == [
        "job,seed,val/loss,val/acc1,knn,state",
        "0,0,,0.75,,finished",
    ]


def test_a_sweep_that_ended_before_its_first_job_has_no_table(tmp_path, capsys):
    assert report_sweep(tmp_path)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


WORDS = ["-m", "seed=0,1"]


def begun(runs, name="a-sweep"):
    directory, sweep = runs / "2026-01-01" / name, Sweep(WORDS)
    sweep.begin(directory)
    return directory, sweep


def released(sweep):
    """What the system does when the process of a sweep is killed."""
    os.close(sweep._lock)


def test_a_killed_sweep_is_found_by_its_words_and_by_no_others(tmp_path):
    directory, sweep = begun(tmp_path)
    released(sweep)
    assert Sweep(["-m", "seed=0,2"]).find(tmp_path) is None
    assert Sweep(list(reversed(WORDS))).find(tmp_path) is None
    assert Sweep(WORDS).find(tmp_path) == directory


def test_a_finished_sweep_is_not_resumed(tmp_path):
    directory, sweep = begun(tmp_path)
    sweep.end(directory, finished=True)
    assert Sweep(WORDS).find(tmp_path) is None


def test_a_sweep_that_ended_with_a_failed_job_is_resumed(tmp_path):
    directory, sweep = begun(tmp_path)
    sweep.end(directory, finished=False)
    assert Sweep(WORDS).find(tmp_path) == directory


def test_a_running_sweep_is_taken_by_nobody(tmp_path):
    begun(tmp_path, "running-sweep")
    assert Sweep(WORDS).find(tmp_path) is None
    directory, sweep = begun(tmp_path, "killed-sweep")
    released(sweep)
    first, second = Sweep(WORDS), Sweep(WORDS)
    assert first.find(tmp_path) == directory
    assert second.find(tmp_path) is None, "the first has it"
    with pytest.raises(UserError, match="another process is running this sweep"):
        second.begin(directory)


def test_of_several_the_newest_is_resumed(tmp_path):
    for name in ("first-sweep", "second-sweep"):
        directory, sweep = begun(tmp_path, name)
        released(sweep)
    os.utime(tmp_path / "2026-01-01" / "first-sweep" / "sweep.json", ns=(1, 1))
    assert Sweep(WORDS).find(tmp_path) == directory


def test_a_directory_holds_one_sweep(tmp_path):
    directory, sweep = begun(tmp_path)
    released(sweep)
    with pytest.raises(UserError, match="holds the sweep of another command"):
        Sweep(["-m", "seed=1,2"]).begin(directory)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_damaged_record_is_no_sweep(tmp_path, content):
    directory, sweep = begun(tmp_path)
    released(sweep)
    (directory / "sweep.json").write_text(content)
    assert Sweep(WORDS).find(tmp_path) is None
