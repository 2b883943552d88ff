"""The train command as a user gives it, on the embedded digits and a backbone of one block."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.utils import parameters_to_vector

from tests.command_line import run_command
from tests.training.standin import QUIET
from vitmae import train as train_module
from vitmae.config import config_dir
from vitmae.errors import UserError
from vitmae.models.objective import with_classes
from vitmae.train import main
from vitmae.training.loggers import read_metrics

pytestmark = QUIET
FIXTURES = Path(__file__).parent / "fixtures"

TINY = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "logger=none",
    "backbone.embed_dim=16",
    "backbone.depth=1",
    "backbone.num_heads=2",
    "data.batch_size=64",
    "trainer.num_sanity_val_steps=0",
    "probe.images=50",
    "panel.images=1",
]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(main, *arguments, capsys=capsys)


def only(pattern):
    (path,) = Path("runs").glob(pattern)
    return path


def weights(run, kind="last"):
    return torch.load(run / "checkpoints" / f"{kind}.ckpt", weights_only=True)


def same(a, b):
    """Bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def shell(*arguments, cwd, env=None, **settings):
    return subprocess.run(
        [sys.executable, "-m", "vitmae.train", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), **(env or {})},
        **settings,
    )


def test_a_run_leaves_all_it_promises_and_says_where(train):
    done = train(*TINY, "trainer.max_steps=3")
    assert done.code == 0, done.err
    run = only("2*/*-mae-digits")
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "commands.txt",
        "environment.json",
        "metrics.csv",
        "effects.txt",
        "train.log",
        "summary.json",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    settings = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert settings["choices"]["model"] == settings["name"].split("-")[0] == "mae"
    assert settings["backbone"]["in_chans"] == 1  # resolved
    assert settings["trainer"]["precision"] == "32-true"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert summary["metrics"]["val/loss"] == pytest.approx(float(read_metrics(run / "metrics.csv")[1][-1]["val/loss"]))
    for line in (
        "held-out loss",
        "kNN accuracy",
        f"reconstruction +{run}/figures/reconstruction.png",
        f"metrics +{run}/metrics.csv",
    ):
        assert re.search(f"^{line}", done.out, re.MULTILINE), line
    assert "held-out loss" in (run / "train.log").read_text()
    assert weights(run)["vitmae_config"] == settings
    assert done.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.mask_ratio=abc"], "model.mask_ratio=abc: must be a number"),
        (["model.mask_ratio=1.0"], "model.mask_ratio=1.0: must be > 0 and < 1"),
        (["+model.foo=1"], "unknown setting model.foo"),
        (["trainer=gpu"], "trainer.accelerator=gpu: no GPU is visible here"),
        (["backbone.patch_size=3"], "not divisible by"),
        (["model.optimizer.warmup_epochs=500"], "warmup_epochs=500 is"),
        (["model=vit", "model.num_classes=3"], "model.num_classes=3, but the data has 10 classes"),
        (["checkpoint.every_n_steps=0"], "checkpoint.every_n_steps=0: must be ≥ 1"),
        (["ckpt=nowhere"], "ckpt=nowhere: there is no such file"),
        (["ckpt=last"], "ckpt=last: no run below runs has a last.ckpt"),
        (["ckpt=last", "-m"], "cannot be swept"),
    ],
)
def test_bad_input_is_one_line_before_any_training_and_code_2(train, arguments, message):
    if arguments == ["trainer=gpu"] and torch.cuda.is_available():
        arguments, message = ["trainer=gpu", "trainer.devices=99"], "trainer.devices=99"
    done = train(*TINY, *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(Path("runs").glob("**/*.ckpt"))
    states = [json.loads(path.read_text()) for path in Path("runs").glob("**/summary.json")]
    assert all(state["state"] == "failed" and message in state["error"] for state in states)


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_as_the_uninterrupted_one_bit_for_bit(train, tmp_path):
    settings = [*TINY, "trainer.max_epochs=3", "checkpoint.every_n_steps=3", "trainer.log_every_n_steps=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vitmae.train", *settings, "name=killed"],
        stdout=-3,
        stderr=-3,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(config_dir().parent)},
    )
    while not list(Path("runs").glob("*/*-killed/checkpoints/last.ckpt")):
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = only("2*/*-killed")
    killed_at = weights(run)["global_step"]
    assert killed_at < 51
    assert killed_at % 17 != 0  # in mid-epoch
    assert train("ckpt=last").code == 0
    assert train(*settings, "name=whole").code == 0
    whole = only("2*/*-whole")
    for kind in ("last", "best"):
        ours, theirs = weights(run, kind), weights(whole, kind)
        assert ours["global_step"] == theirs["global_step"]
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            assert same(ours[part], theirs[part]), part
    (columns, rows), (whole_columns, whole_rows) = (
        read_metrics(run / "metrics.csv"),
        read_metrics(whole / "metrics.csv"),
    )
    assert columns == whole_columns
    assert [drop_clock(row) for row in rows] == [drop_clock(row) for row in whole_rows]
    assert (run / "commands.txt").read_text().count("\n") == 2


def drop_clock(row):
    return {key: value for key, value in row.items() if key != "train/images_per_s"}


def test_the_seed_decides_the_first_weights(train, monkeypatch):
    """And torch's generator does not, wherever it stands."""
    first = []
    monkeypatch.setattr(
        "vitmae.training.fit.fit",
        lambda objective, *rest, **others: first.append(parameters_to_vector(objective.parameters()).detach()) or {},
    )
    for seed in (1, 1, 2):
        torch.rand(len(first) + 1)
        assert train(*TINY, f"seed={seed}").code == 0
    one, same, other = first
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_head_has_as_many_classes_as_the_data_unless_it_is_given_more():
    node = {"_target_": "vitmae.models.supervised.Supervised"}
    for given, made in ((None, 10), (10, 10), (12, 12)):
        assert with_classes(node | {"num_classes": given}, 10)["num_classes"] == made


def test_a_sweeper_that_optimises_is_given_what_the_objective_is_judged_by(train, monkeypatch):
    results, run = [], train_module._train
    monkeypatch.setattr("vitmae.training.fit.fit", lambda *given, **others: {"val/loss": 1.5, "val/acc1": 0.25})
    monkeypatch.setattr(train_module, "_train", lambda *given: results.append(run(*given)) or results[-1])
    for model in ("mae", "vit"):
        assert train(*TINY, f"model={model}").code == 0
    assert results == [1.5, 0.25]


def test_a_resumed_run_keeps_its_directory_and_settings_and_takes_single_ones_on_top(train, monkeypatch):
    assert train(*TINY, "trainer.max_steps=2", "model.mask_ratio=0.5", "seed=7").code == 0
    run = only("2*/*")
    monkeypatch.setattr("vitmae.train._load_weights", lambda *given: pytest.fail("first weights, loaded again"))
    assert train("ckpt=last", "trainer.max_steps=4", "model=mae").code == 0
    assert only("2*/*") == run
    settings = OmegaConf.load(run / "config.yaml")
    assert (settings.trainer.max_steps, settings.model.mask_ratio, settings.seed, settings.ckpt) == (4, 0.5, 7, None)
    assert weights(run)["global_step"] == 4
    assert "trainer.max_steps=4" in (run / "commands.txt").read_text().splitlines()[1]
    done = train("ckpt=last", "model=vit")
    assert (done.code, done.out) == (2, "")
    done = train(f"ckpt={run}", "model=vit")
    assert "model=vit: the run has model=mae" in done.err
    done = train(f"ckpt={run}", "model.mask_rato=0.5")
    assert "did you mean model.mask_ratio?" in done.err


def files(run):
    """The content of a run's files, without its log of messages."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.log"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.mask_ratio=0.5", "model.mask_ratio=0.5: the run has 0.75, which stays"),
        ("backbone.depth=2", "backbone.depth=2: the run has 1, which stays"),
        ("data.val_fraction=0.3", "data.val_fraction=0.3: the run has 0.2, which stays"),
        ("seed=5", "seed=5: the run has 0, which stays"),
        ("+model.optimizer.ema_decay=0.9", "model.optimizer.ema_decay=0.9 has no effect"),
        ("name=other", "name=other has no effect: the run already has the name mae-digits"),
    ],
)
def test_a_refused_resume_is_one_line_before_the_data_and_leaves_the_run_as_it_was(train, monkeypatch, word, message):
    assert train(*TINY, "trainer.max_steps=2").code == 0
    run = only("2*/*")
    before = files(run)
    monkeypatch.setattr("vitmae.train.build", lambda *given, **others: pytest.fail("something was built"))
    done = train(f"ckpt={run}", "trainer.max_steps=4", word)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert files(run) == before


def test_a_shorter_length_is_refused_and_keeps_the_settings(train):
    assert train(*TINY, "trainer.max_steps=4").code == 0
    config = only("2*/*") / "config.yaml"
    before = config.read_text()
    done = train("ckpt=last", "trainer.max_steps=2")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "trainer.max_steps=2: the run has trained 4 steps already" in done.err
    assert config.read_text() == before


def test_what_a_resumed_run_changes_is_in_the_table_and_is_kept(train):
    """A frozen part of the recipe is not needed: learning rate, batch, accumulation and length together."""
    assert train(*TINY, "trainer.max_epochs=1").code == 0
    words = ["trainer.max_epochs=3", "model.optimizer.base_lr=1e-3", "data.batch_size=128"]
    done = train("ckpt=last", *words, "trainer.accumulate_grad_batches=2", "model.optimizer.weight_decay=0.1")
    assert done.code == 0, done.err
    run = only("2*/*")
    for text in (done.out, (run / "effects.txt").read_text()):
        for name, change in {
            "trainer.max_epochs": "1 -> 3",
            "model.optimizer.base_lr": "0.002 -> 0.001",
            "data.batch_size": "64 -> 128",
            "trainer.accumulate_grad_batches": "1 -> 2",
            "model.optimizer.weight_decay": "0.05 -> 0.1",
        }.items():
            assert re.search(rf"changed: {name} +│ {change} ", text), name
        assert re.search(r"resumed after step +│ 4 ", text)  # 8 batches of 128 are 4 steps
    saved = weights(run)
    assert saved["global_step"] == 12
    assert [group["weight_decay"] for group in saved["optimizer_states"][0]["param_groups"]] == [0.0, 0.1]
    assert {group["initial_lr"] for group in saved["optimizer_states"][0]["param_groups"]} == {1e-3}
    assert OmegaConf.load(run / "config.yaml").data.batch_size == 128
    assert all(4 < int(row["step"]) <= 12 for row in read_metrics(run / "metrics.csv")[1])
    assert (run / "metrics-to-step17.csv").exists()


def test_a_finished_run_says_so_and_is_left_as_it_is(train):
    assert train(*TINY, "trainer.max_steps=2").code == 0
    run = only("2*/*")
    before = files(run)
    done = train("ckpt=last")
    assert done.code == 0
    assert "this run has finished: nothing is left to train" in done.out
    assert "held-out loss" in done.out
    assert files(run) == before


def test_a_run_of_before_the_policy_resumes_and_stops_on_what_is_not_finite(train):
    assert train(*TINY, "trainer.max_steps=2").code == 0
    config = only("2*/*") / "config.yaml"
    settings = OmegaConf.load(config)
    del settings["on_nonfinite"]
    config.write_text(OmegaConf.to_yaml(settings))
    assert train("ckpt=last", "trainer.max_steps=3").code == 0
    assert OmegaConf.load(config).on_nonfinite == "stop"


def test_a_lone_checkpoint_goes_on_in_a_directory_of_its_own(train):
    assert train(*TINY, "trainer.max_steps=2", "name=first").code == 0
    shutil.copy(only("2*/*-first") / "checkpoints" / "last.ckpt", "copied = away.ckpt")
    assert train("ckpt=copied = away.ckpt", "trainer.max_steps=3", "name=second").code == 0
    assert weights(only("2*/*-first"))["global_step"] == 2
    assert weights(only("2*/*-second"))["global_step"] == 3


@pytest.mark.slow
def test_a_run_of_an_earlier_version_resumes_with_the_groups_and_the_norm_that_it_had(train):
    """Then positions and tokens were never decayed, and the norm of pool=map had another eps."""
    for name, step in (("mae", 7), ("vit_map", 4)):
        shutil.copy(FIXTURES / f"{name}_format1.ckpt", "old.ckpt")
        before = torch.load("old.ckpt", weights_only=True)
        assert train("ckpt=old.ckpt", f"trainer.max_steps={step}", "trainer.max_epochs=9", f"name={name}").code == 0
        after = weights(only(f"2*/*-{name}"))
        assert after["global_step"] == step == before["global_step"] + 1
        old, new = (content["optimizer_states"][0]["param_groups"] for content in (before, after))
        for key in ("params", "weight_decay"):
            assert [group[key] for group in new] == [group[key] for group in old]
    assert after["vitmae_config"]["model"]["map_norm_eps"] == 1e-5


def test_a_requeued_job_goes_on_by_itself(train, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setattr(sys, "argv", ["train"])
    assert train(*TINY, "trainer.max_steps=2").code == 0
    run = only("2*/*")
    (run / "summary.json").write_text((run / "summary.json").read_text().replace("finished", "running"))
    saved = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(*TINY, "trainer.max_steps=2").code == 0
    assert only("2*/*") == run
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == saved  # nothing was left, and nothing trained anew
    assert (run / "commands.txt").read_text().count("\n") == 2


def test_a_signal_ends_a_run_in_75_and_it_can_be_gone_on_with(train, monkeypatch):
    from vitmae.training.step_log import StepLog

    log = StepLog.on_train_batch_end

    def terminate_at_step_2(callback, trainer, *arguments):
        log(callback, trainer, *arguments)
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StepLog, "on_train_batch_end", terminate_at_step_2)
    done = train(*TINY, "trainer.max_steps=4")
    assert done.code == 75
    run = only("2*/*")
    assert f"stopped after step 2; to resume: python -m vitmae.train ckpt={run}" in done.out
    assert json.loads((run / "summary.json").read_text())["state"] == "interrupted"
    monkeypatch.setattr(StepLog, "on_train_batch_end", log)
    assert train(f"ckpt={run}").code == 0
    assert weights(run)["global_step"] == 4


MOMENTS = {
    "data is built": "vitmae.data.datamodule.ImageData.prepare",
    "baselines are learned": "vitmae.models.mae.MAE.learn_baselines",
    "the untrained encoder is probed": "vitmae.training.online.extract",
    "a panel is drawn": "vitmae.training.online.reconstruction_figure",
    "results are printed": "vitmae.train._log_results",
}


def end_of(run):
    content = weights(run)
    rows = [drop_clock(row) for row in read_metrics(run / "metrics.csv")[1]]
    return {part: content[part] for part in ("state_dict", "optimizer_states", "loops")}, rows


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_ends_a_run_in_75_and_it_ends_as_if_it_had_not_come(train, monkeypatch, moment):
    settings = [*TINY, "trainer.max_epochs=2", "trainer.log_every_n_steps=7", "panel.every_n_epochs=1"]
    with monkeypatch.context() as patch:

        def send(*given, **others):
            os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(MOMENTS[moment], send)
        done = train(*settings, "name=stopped")
    run = only("2*/*-stopped")
    assert (done.code, json.loads((run / "summary.json").read_text())["state"]) == (75, "interrupted"), done.err
    assert f"python -m vitmae.train ckpt={run}" in done.out
    done = train(f"ckpt={run}")
    assert done.code == 0, done.err
    assert train(*settings, "name=whole").code == 0
    whole = only("2*/*-whole")
    (ours, rows), (theirs, whole_rows) = end_of(run), end_of(whole)
    assert same(ours, theirs)
    assert rows == whole_rows
    metrics, whole_metrics = (json.loads((path / "summary.json").read_text())["metrics"] for path in (run, whole))
    assert metrics == whole_metrics


def test_ctrl_c_before_there_is_a_run_is_the_shells_code(train, monkeypatch):
    monkeypatch.setattr("vitmae.runs.directory._make", lambda path: os.kill(os.getpid(), signal.SIGINT))
    done = train(*TINY)
    assert (done.code, done.err) == (130, "interrupted: nothing is kept; to go on, run the same command again\n")


def test_a_signal_ends_a_whole_sweep_with_its_table(train, monkeypatch):
    monkeypatch.setattr("vitmae.training.fit.fit", lambda *given, **others: os.kill(os.getpid(), signal.SIGTERM))
    done = train(*TINY, "-m", "seed=1,2")
    assert done.code == 75
    assert "interrupted" in (only("2*/*-sweep") / "sweep.md").read_text()


def test_a_sweep_ends_with_one_table_also_when_a_job_failed(train, monkeypatch):
    run = train_module._train

    def fail(settings, *given):
        if settings["model"]["mask_ratio"] == 0.6:
            raise UserError("an image is missing")
        return run(settings, *given)

    monkeypatch.setattr(train_module, "_train", fail)
    done = train(*TINY, "trainer.max_steps=1", "-m", "model.mask_ratio=0.5,0.6,0.75")
    assert done.code == 2
    sweep = only("2*/*-mae-digits-sweep")
    rows = (sweep / "sweep.md").read_text().splitlines()
    assert [row.split(" | ")[1:2] + row.split(" | ")[4:5] for row in rows[2:]] == [
        ["0.5", "finished"],
        ["0.6", "failed"],
        ["0.75", "finished"],
    ]
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {
        "0-model.mask_ratio=0.5",
        "1-model.mask_ratio=0.6",
        "2-model.mask_ratio=0.75",
    }
    assert "3 jobs" in done.out
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("loggers", ["csv", "[csv,tensorboard]", "tensorboard"])
def test_metrics_csv_is_written_whatever_the_logger(train, loggers):
    assert train(*TINY, f"logger={loggers}", "trainer.max_steps=1").code == 0
    run = only("2*/*")
    assert read_metrics(run / "metrics.csv")[1][-1]["val/loss"]
    assert (run / "tensorboard").exists() == ("tensorboard" in loggers)


@pytest.mark.parametrize("trainer", ["auto", "cpu", "debug"])
def test_every_trainer_of_one_process_builds(train, trainer):
    done = train(
        *TINY, f"trainer={trainer}", "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=auto"
    )
    assert done.code == 0, done.err


def test_help_and_the_settings_come_without_the_heavy_imports(tmp_path):
    code = "import sys\nfrom vitmae.train import main\nmain({})\nsys.exit(bool({{'torch', 'lightning', 'timm'}} & set(sys.modules)))"
    for arguments in (["--help"], ["--cfg", "job"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(config_dir().parent)},
        )
        assert done.returncode == 0, done.stderr
        assert "model" in done.stdout
        assert not (tmp_path / "runs").exists()


def test_settings_are_found_by_an_installed_package_from_any_directory(tmp_path):
    package = config_dir().parent / "vitmae"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "site" / "vitmae", ignore=ignored)
    shutil.copytree(config_dir(), tmp_path / "site" / "vitmae" / "conf")
    (tmp_path / "elsewhere").mkdir()
    done = shell("--cfg", "job", "--resolve", cwd=tmp_path / "elsewhere", env={"PYTHONPATH": str(tmp_path / "site")})
    assert done.returncode == 0, done.stderr
    assert "name: mae-digits" in done.stdout


def test_every_group_in_the_defaults_has_the_choices_it_names():
    config = OmegaConf.load(config_dir() / "config.yaml")
    for entry in config.defaults:
        for group, choice in entry.items() if OmegaConf.is_dict(entry) else ():
            assert choice is None or (config_dir() / group / f"{choice}.yaml").is_file()


@pytest.mark.parametrize("words", [["hydra.run.dir=a"], ["ckpt=a"]])
def test_a_second_process_in_a_directory_is_refused_before_it_writes_anything(train, words):
    assert train(*TINY, "trainer.max_steps=1", "hydra.run.dir=a").code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("a").rglob("*")}
    writer = "import sys, time; from pathlib import Path; from vitmae.lease import take\n"
    writer += "take(Path(sys.argv[1]), 'a'); print(flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(config_dir().parent)}
    other = subprocess.Popen([sys.executable, "-c", writer, "a/.lease"], stdout=-1, env=environment)
    other.stdout.readline()
    done = train(*(TINY if words[0].startswith("hydra") else []), *words)
    after = {path: path.stat().st_mtime_ns for path in Path("a").rglob("*") if path.name != ".lease"}
    other.kill()
    other.communicate()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: a is in use by process {other.pid} on ")
    assert after == before
    assert train("ckpt=a", "trainer.max_steps=2").code == 0  # a killed process holds nothing


def test_a_rank_that_no_launcher_started_is_refused(train, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = train(*TINY)
    assert done.code == 2
    assert done.err == "error: the environment says rank 1: start several processes with srun or torchrun\n"
