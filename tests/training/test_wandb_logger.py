import os
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import pytest
import wandb

from tests.training.standin import new_run
from tests.training.wandb_server import Server, read_offline_run
from vitmae.runs.reach import refuse_ways_out
from vitmae.training import wandb_logger as module
from vitmae.training.loggers import log_figure
from vitmae.training.wandb_logger import Wandb, has_key

KEY = "a" * 40


@pytest.fixture(autouse=True)
def a_home_of_its_own(tmp_path, monkeypatch):
    """No test sees the user's key or settings, or writes into the user's folders."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield
    wandb.teardown()


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path / "run")


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.stop()


def log_a_run(logger, steps=3):
    logger.log_hyperparams({"model": {"mask_ratio": 0.75}, "name": "standin"})
    for step in range(1, steps + 1):
        logger.log_metrics({"train/loss": 1 / step}, step)


def test_without_a_key_a_run_is_offline_complete_and_says_how_to_upload_it(run, caplog):
    caplog.set_level("INFO")
    logger = Wandb(run, project="mine", tags=["a", "b"])
    log_a_run(logger)
    logger.close({"val/loss": 0.25}, exit_code=0)
    found = read_offline_run(run.path)
    assert (found["project"], found["tags"], found["id"]) == ("mine", ["a", "b"], run.summary()["id"])
    assert found["config"]["model"] == {"mask_ratio": 0.75}
    assert [(row["trainer/global_step"], row["train/loss"]) for row in found["history"]] == [
        (1, 1),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert found["summary"]["val/loss"] == 0.25
    assert found["exit_code"] == 0
    (line,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert line.startswith(f"W&B: offline, no API key; upload with: wandb sync {run.path}/wandb/offline-run-")


def test_figures_arrive_as_images_below_the_run(run):
    logger = Wandb(run)
    figure = plt.figure()
    log_figure([logger], "val/reconstruction", figure, 5)
    plt.close(figure)
    logger.close({}, 0)
    (row,) = read_offline_run(run.path)["history"]
    assert row["trainer/global_step"] == 5
    assert next(run.path.rglob(row["val/reconstruction.path"])).stat().st_size > 0


@pytest.mark.parametrize("log_checkpoint", [True, False])
def test_checkpoints_are_artifacts_by_flag_each_new_best_and_the_last(run, log_checkpoint):
    logger = Wandb(run, log_checkpoint=log_checkpoint)
    log_a_run(logger)
    for content in (b"first best", b"second best"):
        run.best.write_bytes(content)
        logger.after_save_checkpoint(None)
    run.last.write_bytes(b"last")
    logger.close({}, 0)
    artifacts = read_offline_run(run.path)["artifacts"]
    found = [
        ({*artifact.aliases} - {"latest"}, [entry.path for entry in artifact.manifest.contents])
        for artifact in artifacts
    ]
    wanted = [({"best"}, ["best.ckpt"])] * 2 + [({"last"}, ["last.ckpt"])]
    assert found == (wanted if log_checkpoint else [])


def test_a_resumed_run_goes_on_in_the_same_dashboard_run(run):
    for _ in range(2):
        logger = Wandb(run)
        log_a_run(logger)
        logger.close({}, 75)
        refuse_ways_out(run.path)  # which is asked before a run resumes
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    assert {read_offline_run(folder)["id"] for folder in folders} == {run.summary()["id"]}


def test_with_a_key_a_run_is_online(run, server, caplog):
    caplog.set_level("INFO")
    logger = Wandb(run)
    log_a_run(logger)
    logger.close({"val/loss": 0.25}, 0)
    assert {bucket["name"] for bucket in server.buckets} == {run.summary()["id"]}
    assert sum('"train/loss"' in line for line in server.lines["wandb-history.jsonl"]) == 3
    assert any('"val/loss":0.25' in line for line in server.lines["wandb-summary.json"])
    assert f"W&B: online at {server.url}/local/vitmae/runs/{run.summary()['id']}" in caplog.text


def test_a_server_that_cannot_be_reached_makes_the_run_offline_in_one_line(run, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    logger = Wandb(run, init_timeout=1)
    log_a_run(logger)
    logger.close({}, 0)
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    assert len(read_offline_run(folder)["history"]) == 3
    (line,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert line.startswith("W&B: offline, 127.0.0.1:9 cannot be used: ")
    assert line.endswith(f"upload with: wandb sync {folder}")


def test_a_network_lost_in_the_middle_stops_nothing_and_loses_nothing(run, server, caplog):
    logger = Wandb(run, finish_timeout=1)
    log_a_run(logger, steps=1)
    server.stop()
    log_a_run(logger, steps=200)
    start = time.monotonic()
    logger.close({"val/loss": 0.25}, 0)
    assert time.monotonic() - start < 20
    (folder,) = (run.path / "wandb").glob("run-*")
    assert len(read_offline_run(folder)["history"]) == 201
    assert f"upload the rest with: wandb sync {folder}" in caplog.text


@pytest.mark.slow  # a process of its own imports lightning and wandb
def test_a_wandb_process_that_is_killed_ends_no_run_and_prints_no_traceback(run, tmp_path):
    code = (
        "import os, signal, subprocess, sys\n"
        "from pathlib import Path\n"
        "from vitmae.runs.directory import RunDirectory\n"
        "from vitmae.training.wandb_logger import Wandb\n"
        "logger = Wandb(RunDirectory(Path(sys.argv[1])), mode='offline')\n"
        "logger.log_metrics({'train/loss': 1.0}, 1)\n"
        "children = subprocess.run(['ps', '--ppid', str(os.getpid()), '-o', 'pid=,comm='], capture_output=True, text=True)\n"
        "(core,) = (line.split()[0] for line in children.stdout.splitlines() if 'wandb' in line)\n"
        "os.kill(int(core), signal.SIGKILL)\n"
        "for step in range(2, 1000): logger.log_metrics({'train/loss': 1.0}, step)\n"
        "logger.close({'val/loss': 0.25}, 0)\n"
        "print('the run goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the run goes on\n")
    assert done.stderr.startswith("W&B: no longer logged, ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionResetError])
def test_a_wandb_process_that_cannot_be_ended_ends_no_run(run, monkeypatch, error):
    logger = Wandb(run)
    log_a_run(logger, steps=1)
    teardown = wandb.teardown

    def fail():
        teardown()
        raise error

    monkeypatch.setattr(wandb, "teardown", fail)
    logger.close({}, 75)
    monkeypatch.undo()


def test_artifacts_wait_for_their_upload_below_the_run_that_made_them(run, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR")
    logger = Wandb(run, log_checkpoint=True)
    log_a_run(logger)
    run.last.write_bytes(b"last")
    logger.close({}, 0)
    assert list((run.path / "wandb" / "artifacts").rglob("*"))
    assert "WANDB_DATA_DIR" not in os.environ


def test_what_fails_once_is_told_once_and_not_tried_again(run, monkeypatch, caplog):
    logger = Wandb(run)
    log_a_run(logger, steps=1)
    calls = []

    def fail(metrics):
        calls.append(metrics)
        raise BrokenPipeError("the service is gone\nand more")

    monkeypatch.setattr(logger._run, "log", fail)
    log_a_run(logger)
    assert len(calls) == 1
    assert caplog.text.count("W&B: no longer logged, the service is gone;") == 1


@pytest.mark.parametrize(("mode", "variable", "offline"), [("auto", "offline", True), ("offline", "online", True)])
def test_a_mode_that_is_set_wins_over_a_key(run, server, monkeypatch, mode, variable, offline):
    monkeypatch.setenv("WANDB_MODE", variable)
    logger = Wandb(run, mode=mode)
    log_a_run(logger, steps=1)
    assert logger._run.offline is offline
    logger.close({}, 0)
    assert server.buckets == []


def test_a_key_is_found_in_the_environment_and_in_the_netrc_of_its_host(tmp_path, monkeypatch):
    assert not has_key()
    (tmp_path / "home" / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443")
    assert not has_key()
    (tmp_path / "home" / ".netrc").write_text(f"machine wandb.example.org:8443 login user password {KEY}\n")
    assert has_key()
    (tmp_path / "home" / ".netrc").unlink()
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key()


@pytest.mark.parametrize(
    "content", ["machine api.wandb.ai login", "nonsense", 'machine api.wandb.ai login user password ""']
)
def test_a_netrc_without_a_readable_key_is_no_key(tmp_path, monkeypatch, content):
    (tmp_path / "netrc").write_text(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()


def test_other_ranks_than_the_first_log_nothing(run, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
    logger = Wandb(run)
    log_a_run(logger)
    logger.close({}, 0)
    assert not (run.path / "wandb").exists()
