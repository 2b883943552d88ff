import sys

import pytest

from vitmae.errors import UserError
from vitmae.runs.launch import Launch, current_launch

TORCHRUN = {"TORCHELASTIC_RUN_ID": "job7", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


def test_a_process_alone_is_the_first_and_has_nobody_to_agree_with():
    assert current_launch({}) == Launch(rank=0, separate=False, key=None, attempt=0)


def test_a_process_that_lightning_started_is_a_child_of_the_first():
    launch = current_launch({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1234"})
    assert launch.is_child
    assert launch.rank == 1


def test_ranks_of_torchrun_share_a_key_and_none_is_a_child():
    launches = [current_launch(TORCHRUN | {"RANK": str(rank)}) for rank in range(4)]
    assert {(launch.key, launch.meeting, launch.world) for launch in launches} == {
        (launches[0].key, launches[0].meeting, 4)
    }
    assert "torchrun-job7" in launches[0].key
    assert [launch.rank for launch in launches] == [0, 1, 2, 3]
    assert not any(launch.is_child for launch in launches)


def test_a_restart_by_torchrun_is_a_later_attempt_of_the_same_run():
    first, second = (current_launch(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": count}) for count in "01")
    assert (first.key, first.attempt, second.attempt) == (second.key, 0, 1)


def test_torchrun_without_a_name_is_known_by_its_process_on_one_node_and_refused_on_several():
    unnamed = TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}
    one_node = unnamed | {"LOCAL_WORLD_SIZE": "4"}
    assert current_launch(one_node).key == current_launch(one_node | {"RANK": "0"}).key
    assert "none" not in current_launch(one_node).key
    with pytest.raises(UserError, match="--rdzv-id"):
        current_launch(unnamed)


def test_a_requeued_slurm_job_has_the_key_it_had_and_another_job_another():
    first, again = current_launch(SRUN), current_launch(SRUN | {"SLURM_RESTART_COUNT": "1"})
    assert (first.key, first.attempt, again.attempt) == (again.key, 0, 1)
    assert first.separate
    assert current_launch(SRUN | {"SLURM_JOB_ID": "43"}).key != first.key
    assert current_launch(SRUN | {"SLURM_CLUSTER_NAME": "other"}).key != first.key


@pytest.mark.parametrize("started", [SRUN, TORCHRUN])
def test_two_commands_of_one_job_are_two_runs(started):
    assert current_launch(started, ["model=mae"]).key != current_launch(started, ["model=vit"]).key


def test_words_that_a_command_adds_on_one_rank_do_not_change_the_key(monkeypatch):
    before = current_launch(SRUN)
    monkeypatch.setattr("sys.argv", [*sys.argv, "hydra.job.name=rank1"])
    assert current_launch(SRUN) == before


def test_torchrun_in_a_requeued_slurm_job_is_a_later_attempt():
    named = TORCHRUN | {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "1", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert current_launch(named).attempt == 1


def test_two_starts_by_torchrun_with_one_name_do_not_meet():
    starts = [current_launch(TORCHRUN | {"MASTER_ADDR": "node1", "MASTER_PORT": port}) for port in ("29500", "29501")]
    assert starts[0].meeting != starts[1].meeting


def test_one_process_in_a_slurm_job_is_the_first_whatever_the_batch_script_inherits():
    launch = current_launch({"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    assert (launch.rank, launch.separate) == (0, False)


def test_a_key_can_be_a_file_name():
    launch = current_launch(TORCHRUN | {"TORCHELASTIC_RUN_ID": "a/b c", "MASTER_ADDR": "fe80::1"})
    assert not {"/", " ", ":"} & set(f"{launch.key}{launch.meeting}")
