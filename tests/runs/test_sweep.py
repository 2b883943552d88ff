import csv
import json

import pytest

from vitmae.runs.sweep import read_sweep, report_sweep


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
