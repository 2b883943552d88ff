import os
import signal
import sys

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from tests.command_line import run_command
from vitmae.command import command
from vitmae.composition import help_text, quoted, split_arguments
from vitmae.config import config_dir
from vitmae.errors import UserError

calls = []


def task(config):
    """Notes what it was called with, and fails where it is told to."""
    OmegaConf.resolve(config)
    calls.append((config, list(sys.argv), HydraConfig.get().run.dir, HydraConfig.get().runtime.output_dir))
    if config.name == "mistake":
        raise UserError("this cannot be\ndone")
    if config.name == "fault":
        raise ZeroDivisionError
    if config.name == "stop":
        raise SystemExit(75)
    return 0.5


@pytest.fixture
def run(tmp_path, capsys):
    calls.clear()
    return lambda *arguments: run_command(command(task), f"runs={tmp_path / 'runs'}", *arguments, capsys=capsys)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.mask_rato=0.5", "unknown setting model.mask_rato: did you mean model.mask_ratio?"),
        ("modle.mask_ratio=0.5", "unknown setting modle.mask_ratio: did you mean model.mask_ratio?"),
        ("nothing.like.it=1", "unknown setting nothing.like.it"),
        ("~model.mask_rato", "unknown setting model.mask_rato: did you mean model.mask_ratio?"),
        ("model=maee", "unknown choice model=maee: did you mean model=mae? (the choices are mae, masked_patch, vit)"),
        ("modle=mae", "unknown setting modle: did you mean model?"),
        ("model.mask_ratio", "cannot read 'model.mask_ratio': write key=value"),
        ("data=[digits", "cannot read 'data=[digits': write key=value"),
    ],
)
def test_what_hydra_cannot_compose_is_one_line_with_the_nearest_name(run, argument, message):
    done = run(argument)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_the_nearest_setting_is_one_of_the_groups_that_were_chosen(run):
    assert "did you mean model.label_smoothing?" in run("model=vit", "model.label_smooting=0.1").err
    assert "did you mean" not in run("model=mae", "model.label_smooting=0.1").err


@pytest.mark.parametrize(
    ("name", "code", "last_line"),
    [
        ("mistake", 2, "error: this cannot be done"),
        ("fault", 1, "ZeroDivisionError"),
        ("stop", 75, ""),
        ("well", 0, ""),
    ],
)
def test_how_a_task_ends_is_how_the_command_ends(run, name, code, last_line):
    done = run(f"name={name}")
    assert done.code == code
    assert (done.err.splitlines() or [""])[-1] == last_line
    assert ("Traceback" in done.err) == (name == "fault")


@pytest.mark.parametrize(
    ("number", "keeps", "code", "said"),
    [
        (signal.SIGTERM, "", 75, "nothing is kept"),
        (signal.SIGUSR1, "", 75, "nothing is kept"),
        (signal.SIGHUP, "", 75, "nothing is kept"),
        (signal.SIGINT, "", 130, "nothing is kept"),
        (signal.SIGINT, "finished chunks are kept", 75, "finished chunks are kept"),
    ],
)
def test_a_signal_ends_a_command_in_one_line(capsys, tmp_path, number, keeps, code, said):
    before = signal.getsignal(number)
    done = run_command(
        command(lambda config: os.kill(os.getpid(), number), keeps=keeps), f"runs={tmp_path}", capsys=capsys
    )
    assert (done.code, done.err) == (code, f"interrupted: {said}; to go on, run the same command again\n")
    assert signal.getsignal(number) == before


def test_the_command_line_of_the_process_is_left_as_it_was(run):
    before = list(sys.argv)
    run("name=well")
    assert sys.argv == before


def test_overrides_may_be_replaced_before_they_are_read(tmp_path, capsys):
    calls.clear()
    replaced = command(task, prepare=lambda arguments: [f"runs={tmp_path}", "name=well", "seed=5"])
    assert run_command(replaced, "nonsense", capsys=capsys).code == 0
    assert calls[0][0].seed == 5


def test_a_job_of_a_sweep_looks_like_a_command_of_its_own_to_those_that_run_it_again(run, tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    configs = tmp_path / "configs"
    configs.mkdir()
    assert run("-m", "seed=1,2", "name=well", "--config-dir", str(configs)).code == 0
    assert [arguments[1:] for _, arguments, *_ in calls] == [
        ["--config-dir", str(configs), f"runs={tmp_path / 'runs'}", f"seed={seed}", "name=well"] for seed in (1, 2)
    ]
    assert all(run_dir == output_dir for *_, run_dir, output_dir in calls)


def test_what_the_ranks_of_a_job_leave_behind_does_not_reach_the_next(tmp_path, capsys, monkeypatch):
    seen = []

    def rank_starter(config):
        import os

        seen.append(os.environ.get("MASTER_PORT"))
        os.environ["MASTER_PORT"] = "1234"

    monkeypatch.delenv("MASTER_PORT", raising=False)
    run_command(command(rank_starter), f"runs={tmp_path}", "-m", "seed=1,2", capsys=capsys)
    assert seen == [None, None]


def test_a_failed_job_stops_no_other_and_makes_the_sweep_fail(run):
    done = run("-m", "name=fault,mistake,well")
    assert [config.name for config, *_ in calls] == ["fault", "mistake", "well"]
    assert done.code == 2


def test_an_interrupted_job_ends_the_sweep(run):
    done = run("-m", "name=well,stop,well")
    assert [config.name for config, *_ in calls] == ["well", "stop"]
    assert done.code == 75


@pytest.mark.parametrize(("names", "all_finished", "code"), [("well", True, 0), ("well", False, 1), ("stop", True, 75)])
def test_a_sweep_has_its_own_end_also_when_it_is_interrupted(tmp_path, capsys, names, all_finished, code):
    ended = []
    main = command(task, end_sweep=lambda directory: ended.append(directory) or all_finished)
    assert run_command(main, f"runs={tmp_path}", "-m", "seed=1,2", f"name={names}", capsys=capsys).code == code
    assert ended == list(tmp_path.glob("*/*-sweep"))
    run_command(main, f"runs={tmp_path}", "name=well", capsys=capsys)
    assert len(ended) == 1  # a single run is no sweep


def test_a_mistake_in_any_job_of_a_sweep_is_found_before_the_first_runs(run):
    done = run("-m", "model=mae,maee")
    assert (done.code, calls) == (2, [])


def test_the_jobs_of_a_sweep_are_named_by_what_differs(run, tmp_path):
    run("-m", "seed=1,2", "name=well", "model.optimizer.betas=[0.9,0.95],[0.9,0.999]")
    (sweep,) = (tmp_path / "runs").glob("*/*-well-sweep")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == [
        "0-model.optimizer.betas=_0.9_0.95_seed=1",
        "1-model.optimizer.betas=_0.9_0.999_seed=1",
        "2-model.optimizer.betas=_0.9_0.95_seed=2",
        "3-model.optimizer.betas=_0.9_0.999_seed=2",
    ]


def test_a_run_is_named_by_its_time_and_its_groups(run, tmp_path):
    run("model=vit", "data=shapes")
    (directory,) = (tmp_path / "runs").glob("*/*")
    assert directory.name.endswith("-vit-shapes")
    assert calls[0][3] == str(directory)
    assert calls[0][0].choices.model == "vit"


def test_a_rank_beside_others_leaves_hydras_files_to_the_first(run, monkeypatch, tmp_path):
    environ = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    run("name=well")
    (directory,) = (tmp_path / "runs").glob("2*/*")
    assert [path.name for path in directory.iterdir()] == ["rank1.log"]


@pytest.mark.parametrize("new", ["", "runs/new"])
@pytest.mark.parametrize("name", ["a=b", "a,b", "a (b)", "a b", "R&D", "plain"])
def test_a_path_with_any_characters_can_be_given_as_it_is(run, tmp_path, name, new):
    path = tmp_path / name
    path.mkdir()
    assert run(f"ckpt={path / new}").code == 0
    assert calls[0][0].ckpt == str(path / new)


def test_only_paths_are_quoted():
    for argument in ("seed=1,2", "model.optimizer.betas=[0.9,0.95]", "name='a=b'", "-m", "~logger"):
        assert quoted(argument) == argument


def test_flags_may_stand_anywhere_on_the_command_line():
    flags, overrides = split_arguments(["a=1", "-m", "~b", "--config-dir", "x", "+c=2", "--cfg=job"])
    assert (flags, overrides) == (["-m", "--config-dir", "x", "--cfg=job"], ["a=1", "~b", "+c=2"])


def test_help_names_every_group_with_its_choices_and_the_default():
    text = help_text("config")
    for group in ("model", "backbone", "data", "trainer", "logger"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {group} ")]
        for path in (config_dir() / group).glob("*.yaml"):
            assert (path.stem in line) is not path.stem.startswith("_")
    assert "[mae]" in text
    assert text.count("python -m vitmae.train") > 5
