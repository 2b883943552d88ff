import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from vitmae.errors import UserError
from vitmae.lease import holding
from vitmae.runs import directory as module
from vitmae.runs.directory import RunDirectory, claim_directory, environment, read_summary, state_of
from vitmae.runs.launch import Launch

ALONE = Launch()
FIRST = Launch(separate=True, key="slurm-42")


def start(path, launch=ALONE, **settings):
    run = RunDirectory(path, is_writer=launch.rank == 0)
    return run, run.start(launch, **{"name": "mae", "choices": {"model": "mae"}, "is_resumed": False} | settings)


def test_runs_that_want_one_name_at_once_never_share_a_directory(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        claims = list(pool.map(lambda _: claim_directory(tmp_path / "day" / "mae", Launch(), tmp_path), range(50)))
    assert len(set(claims)) == 50
    assert all(claim.is_dir() for claim in claims)
    assert {"mae", "mae-2", "mae-50"} <= {claim.name for claim in claims}


@pytest.mark.parametrize("separate", [True, False])
def test_a_later_attempt_of_a_job_gets_the_directory_of_the_earlier_one(tmp_path, separate):
    first = replace(FIRST, separate=separate)
    directory = claim_directory(tmp_path / "monday", first, tmp_path)
    assert claim_directory(tmp_path / "tuesday", replace(first, attempt=2), tmp_path) == directory


def test_a_later_attempt_whose_directory_was_deleted_gets_a_new_one(tmp_path):
    claim_directory(tmp_path / "monday", FIRST, tmp_path).rmdir()
    assert claim_directory(tmp_path / "tuesday", replace(FIRST, attempt=1), tmp_path) == tmp_path / "tuesday"


def test_a_first_attempt_takes_no_directory_of_an_older_job_with_its_number(tmp_path):
    claim_directory(tmp_path / "monday", FIRST, tmp_path)
    assert claim_directory(tmp_path / "tuesday", FIRST, tmp_path) == tmp_path / "tuesday"


def test_records_of_jobs_that_did_not_start_for_a_month_are_deleted(tmp_path):
    for number in range(3):
        claim_directory(tmp_path / "a", replace(FIRST, key=f"slurm-{number}"), tmp_path)
    launches = tmp_path / module.LAUNCHES
    (launches / "slurm-3").mkdir()
    (launches / "slurm-3" / "rank1.question").touch()
    for old in ("slurm-0.directory", "slurm-3"):
        os.utime(launches / old, (1000, 1000))
    claim_directory(tmp_path / "a", replace(FIRST, key="slurm-4"), tmp_path)
    assert sorted(os.listdir(launches)) == [f"slurm-{number}.directory" for number in (1, 2, 4)]


def test_the_same_command_twice_in_one_slurm_job_makes_two_runs(tmp_path):
    alone = Launch(key="slurm-42")
    assert claim_directory(tmp_path / "a", alone, tmp_path) != claim_directory(tmp_path / "b", alone, tmp_path)


def test_a_directory_that_holds_a_run_is_refused_unless_it_is_resumed(tmp_path):
    start(tmp_path)
    identity = read_summary(tmp_path)["id"]
    with pytest.raises(UserError, match="holds a run: resume it with ckpt="):
        start(tmp_path)
    start(tmp_path, is_resumed=True)
    assert read_summary(tmp_path)["id"] == identity  # under which it is known to dashboards


def test_a_requeued_job_is_recognised_and_a_first_attempt_is_not(tmp_path):
    assert not start(tmp_path, FIRST)[1]
    assert start(tmp_path, replace(FIRST, attempt=1))[1]
    assert start(tmp_path, replace(FIRST, attempt=2))[1]


def test_another_job_in_the_same_directory_is_not_taken_for_a_requeued_one(tmp_path):
    start(tmp_path, FIRST)
    with pytest.raises(UserError, match="holds a run"):
        start(tmp_path, Launch(key="slurm-43", attempt=1))


def test_only_the_first_rank_writes(tmp_path):
    run = RunDirectory(tmp_path / "run", is_writer=False)
    run.record("finished")
    run.save_config("a: 1")
    run.save_command(["train"])
    run.save_environment(["cpu"])
    assert not (tmp_path / "run").exists()


def test_a_state_is_added_to_the_facts_that_are_known(tmp_path):
    run, _ = start(tmp_path)
    run.record("interrupted", step=7)
    run.record("finished", metrics={"val/loss": 0.5})
    summary = read_summary(tmp_path)
    assert (summary["state"], summary["step"], summary["metrics"]) == ("finished", 7, {"val/loss": 0.5})
    assert (summary["name"], summary["choices"]) == ("mae", {"model": "mae"})


def test_each_command_that_worked_on_a_run_is_kept(tmp_path):
    run, _ = start(tmp_path)
    run.save_config("a: 1")
    run.save_command(["python", "-m", "vitmae.train"])
    run.save_config("a: 2")
    run.save_command(["python", "-m", "vitmae.train", "ckpt=last", "name=two words"])
    commands = (tmp_path / "commands.txt").read_text().splitlines()
    assert [command.split("  ")[1] for command in commands] == [
        "python -m vitmae.train",
        "python -m vitmae.train ckpt=last 'name=two words'",
    ]
    assert run.config.read_text() == "a: 2"


def test_what_a_killed_attempt_left_is_cleared_away(tmp_path):
    run, _ = start(tmp_path)
    leftovers = [run.checkpoints / "last.ckpt.tmp1"]
    leftovers += [tmp_path / name for name in ("metrics.csv.tmp2", "rank1.error", ".lease.rank1")]
    for path in leftovers:
        path.touch()
    start(tmp_path, is_resumed=True)
    assert not any(path.exists() for path in leftovers)


def test_a_run_that_says_running_and_whose_process_is_gone_was_killed(tmp_path):
    run, _ = start(tmp_path)
    assert state_of(tmp_path) == "killed"
    with holding(run.lease, "run"):
        assert state_of(tmp_path) == "running"
    run.record("finished")
    assert state_of(tmp_path) == "finished"
    assert state_of(tmp_path / "nothing") == "not started"


def test_the_environment_names_the_commit_of_this_code_and_whether_it_was_changed(tmp_path):
    run, _ = start(tmp_path)
    run.save_environment(["cpu"])
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["devices"] == ["cpu"]
    assert facts["versions"]["torch"].startswith("2.")
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if git.returncode == 0:  # a tarball has no history
        assert facts["git"]["commit"] == git.stdout.strip()
        assert isinstance(facts["git"]["dirty"], bool)


def test_code_outside_any_repository_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("vitmae.runs.directory.__file__", str(tmp_path / "run_directory.py"))
    assert environment()["git"] is None


def test_a_run_directory_costs_no_heavy_import():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, vitmae.train; print(sorted({'torch', 'lightning', 'timm'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
