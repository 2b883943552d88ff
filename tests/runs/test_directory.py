import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from vitmae.errors import UserError
from vitmae.runs import directory as module
from vitmae.runs.directory import RunDirectory, claim_directory, environment, read_summary
from vitmae.runs.launch import Launch

ALONE = Launch()
RANKS = [Launch(rank, separate=True, key="slurm-42") for rank in range(8)]


def start(path, launch=ALONE, **settings):
    run = RunDirectory(path, is_writer=launch.rank == 0)
    return run, run.start(launch, **{"name": "mae", "choices": {"model": "mae"}, "is_resumed": False} | settings)


def test_runs_that_want_one_name_at_once_never_share_a_directory(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        claims = list(pool.map(lambda _: claim_directory(tmp_path / "day" / "mae", Launch(), tmp_path), range(50)))
    assert len(set(claims)) == 50
    assert all(claim.is_dir() for claim in claims)
    assert {"mae", "mae-2", "mae-50"} <= {claim.name for claim in claims}


def test_ranks_that_are_started_side_by_side_agree_although_their_clocks_differ(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        claims = list(
            pool.map(lambda rank: claim_directory(tmp_path / "day" / f"{rank.rank}-mae", rank, tmp_path), RANKS)
        )
    assert len(set(claims)) == 1
    assert [path.name for path in (tmp_path / "day").iterdir()] == [claims[0].name]  # nobody leaves an empty one


def test_a_rank_that_is_overtaken_while_it_makes_a_directory_takes_the_other_one(tmp_path, monkeypatch):
    make, first = module._make, []

    def be_overtaken(path):
        monkeypatch.setattr(module, "_make", make)
        first.append(claim_directory(tmp_path / "day" / "0-mae", RANKS[0], tmp_path))
        return make(path)

    monkeypatch.setattr(module, "_make", be_overtaken)
    assert claim_directory(tmp_path / "day" / "1-mae", RANKS[1], tmp_path) == first[0]
    assert list((tmp_path / "day").iterdir()) == first


@pytest.mark.parametrize("separate", [True, False])
def test_a_later_attempt_of_a_job_gets_the_directory_of_the_earlier_one(tmp_path, separate):
    first = replace(RANKS[0], separate=separate)
    directory = claim_directory(tmp_path / "monday", first, tmp_path)
    assert claim_directory(tmp_path / "tuesday", replace(first, attempt=2), tmp_path) == directory


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


def test_a_requeued_job_is_recognised_by_every_rank_and_a_first_attempt_is_not(tmp_path):
    assert not start(tmp_path, RANKS[0])[1]
    assert not start(tmp_path, RANKS[1])[1]
    assert start(tmp_path, replace(RANKS[1], attempt=1))[1]
    assert start(tmp_path, replace(RANKS[0], attempt=1))[1]
    assert start(tmp_path, replace(RANKS[2], attempt=1))[1]  # also after the first rank has begun the new attempt


def test_another_job_in_the_same_directory_is_not_taken_for_a_requeued_one(tmp_path):
    start(tmp_path, RANKS[0])
    with pytest.raises(UserError, match="holds a run"):
        start(tmp_path, Launch(key="slurm-43", attempt=1))


def test_only_the_first_rank_writes(tmp_path):
    run, _ = start(tmp_path / "run", Launch(rank=1))
    run.record("finished")
    run.save_config("a: 1", ["train"])
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
    run.save_config("a: 1", ["python", "-m", "vitmae.train"])
    run.save_config("a: 2", ["python", "-m", "vitmae.train", "ckpt=last", "name=two words"])
    commands = (tmp_path / "commands.txt").read_text().splitlines()
    assert [command.split("  ")[1] for command in commands] == [
        "python -m vitmae.train",
        "python -m vitmae.train ckpt=last 'name=two words'",
    ]
    assert run.config.read_text() == "a: 2"


def test_what_a_killed_attempt_left_is_cleared_away(tmp_path):
    run, _ = start(tmp_path)
    leftovers = [run.checkpoints / "last.ckpt.tmp1", tmp_path / "metrics.csv.tmp2", tmp_path / "rank1.error"]
    for path in leftovers:
        path.touch()
    start(tmp_path, is_resumed=True)
    assert not any(path.exists() for path in leftovers)


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
