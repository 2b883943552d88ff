"""The train command in several processes on the processor: one ending for all of them, whoever starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.processes import TWO_RANKS, work_in
from vitmae.training.loggers import read_metrics

pytestmark = pytest.mark.slow

TINY = [*TWO_RANKS, "logger=none", "data.batch_size=32"]


@pytest.fixture(autouse=True)
def a_directory_of_its_own(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


def start(*arguments, starter=("-m", "vitmae.train")):
    return subprocess.Popen([sys.executable, *starter, *TINY, *arguments], text=True, stdout=-1, stderr=-1)


def end(process):
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def only(pattern):
    (path,) = Path("runs").glob(pattern)
    return path


def state(run):
    return json.loads((run / "summary.json").read_text())["state"]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def until_saved(process, name):
    while not list(Path("runs").glob(f"2*/*{name}*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_a_signal_to_the_first_process_stops_all_of_them_at_one_step_and_the_run_goes_on(tmp_path):
    settings = ["trainer.max_epochs=1000", "probe.every_n_epochs=1000", "panel.every_n_epochs=1000"]
    process = start(*settings, "name=stopped")
    until_saved(process, "stopped")
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    code, out, err = end(process)
    assert time.monotonic() - begin < 10
    run = only("2*/*")
    assert (code, state(run)) == (75, "interrupted"), err
    stopped_at = weights(run)["global_step"]
    assert f"stopped after step {stopped_at}; to resume: " in out
    assert err == ""
    resumed = subprocess.run(
        [sys.executable, "-m", "vitmae.train", "ckpt=last", f"trainer.max_steps={stopped_at + 2}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert weights(run)["global_step"] == stopped_at + 2


def test_a_mistake_that_every_process_finds_is_told_once():
    code, _, err = end(start("model.optimizer.warmup_epochs=500"))
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert state(only("2*/*")) == "failed"


def test_a_killed_first_process_leaves_a_failed_run_and_no_other_process():
    process = start("trainer.max_epochs=1000", "probe.every_n_epochs=1000", "panel.every_n_epochs=1000")
    until_saved(process, "mae")
    process.kill()
    end(process)  # the other process holds the output open until it has ended
    run = only("2*/*")
    assert state(run) == "failed"
    assert "the first process of the run was killed" in json.loads((run / "summary.json").read_text())["error"]


def test_a_mistake_that_only_another_process_finds_ends_the_run_in_its_words(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import os, sys\n"
        "from vitmae import train\n"
        "from vitmae.data.datamodule import ImageData\n"
        "from vitmae.errors import UserError\n"
        "def refuse(self): raise UserError('an image that only rank 1 reads')\n"
        "if os.environ.get('LOCAL_RANK') == '1': ImageData.val_dataloader = refuse\n"
        "sys.exit(train.main())\n"
    )
    process = start(starter=(str(broken),))
    code, _, err = end(process)
    assert (code, err) == (2, "error: an image that only rank 1 reads\n")
    assert state(only("2*/*")) == "failed"


def test_ranks_that_torchrun_starts_share_one_run():
    starter = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vitmae.train")
    code, out, err = end(start("trainer.max_steps=2", starter=starter))
    assert code == 0, err
    assert weights(only("2*/*"))["global_step"] == 2
    assert out.count("held-out loss") == 1


def test_the_logged_speed_counts_the_images_of_all_processes(tmp_path):
    ticking = tmp_path / "ticking.py"
    ticking.write_text(
        "import itertools, sys, types\n"
        "from vitmae import train\n"
        "from vitmae.training import step_log\n"
        "step_log.time = types.SimpleNamespace(perf_counter=itertools.count().__next__)\n"  # a second at each look
        "sys.exit(train.main())\n"
    )
    code, _, err = end(start("trainer.max_steps=2", "trainer.log_every_n_steps=1", starter=(str(ticking),)))
    assert code == 0, err
    _, rows = read_metrics(only("2*/*") / "metrics.csv")
    assert [row["train/images_per_s"] for row in rows if row["train/images_per_s"]] == ["64", "64"]


def test_each_job_of_a_sweep_starts_its_own_processes():
    code, _, err = end(start("trainer.max_steps=2", "-m", "model.mask_ratio=0.5,0.75"))
    assert code == 0, err
    sweep = only("2*/*-sweep")
    ratios = [
        weights(sweep / f"{number}-model.mask_ratio={ratio}")["vitmae_config"]["model"]["mask_ratio"]
        for number, ratio in enumerate((0.5, 0.75))
    ]
    assert ratios == [0.5, 0.75]
    assert os.listdir(sweep / "0-model.mask_ratio=0.5" / "checkpoints").count("last.ckpt") == 1
    assert len(list(Path("runs").glob("2*/*"))) == 1  # no process has begun a sweep of its own


def test_an_average_kept_by_two_processes_is_that_of_one_with_twice_the_batch():
    settings = ["model=vit", "model.optimizer.ema_decay=0.5", "model.optimizer.base_lr=1e-3", "trainer.max_steps=4"]
    for arguments in (["name=two"], ["name=one", "trainer.devices=1", "trainer.strategy=auto", "data.batch_size=64"]):
        code, _, err = end(start(*settings, *arguments))
        assert code == 0, err
    one, two = (weights(only(f"2*/*-{name}")) for name in ("one", "two"))
    assert int(two["averaging_state"]["n_averaged"]) == 4
    for part in ("state_dict", "current_model_state"):
        for name, tensor in one[part].items():
            assert torch.allclose(two[part][name], tensor, atol=1e-5), name
    name = "backbone.vit.blocks.0.mlp.fc1.weight"
    assert not torch.allclose(two["state_dict"][name], two["current_model_state"][name], atol=1e-5)
    resumed = subprocess.run(
        [sys.executable, "-m", "vitmae.train", f"ckpt={only('2*/*-two')}", "trainer.max_steps=6"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert int(weights(only("2*/*-two"))["averaging_state"]["n_averaged"]) == 6


INFINITE_ON_RANK_1 = """
import os, sys
from vitmae import train
from vitmae.models.mae import MAE

measure, seen = MAE.measure, []

def measured(self, batch):
    metrics = measure(self, batch)
    seen.append(self.training)
    if os.environ.get("LOCAL_RANK") == "1" and self.training and sum(seen) == 5:
        return {"loss": metrics["loss"] + float("inf")}  # with a finite gradient, so only this process can know
    return metrics

MAE.measure = measured
sys.exit(train.main())
"""


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_all_processes_do_the_same_about_a_loss_that_is_not_finite_in_one(tmp_path, policy):
    starter = tmp_path / "starter.py"
    starter.write_text(INFINITE_ON_RANK_1)
    words = [f"on_nonfinite={policy}", "trainer.max_steps=7", "checkpoint.every_n_steps=3"]
    code, out, err = end(start(*words, starter=(str(starter),)))
    run = only("2*/*")
    bundle = torch.load(run / "nonfinite" / "step5.ckpt", weights_only=True)
    ours, theirs = (batches[0]["keys"] for batches in bundle["batches"])
    assert not set(ours.tolist()) & set(theirs.tolist())
    saved = weights(run)
    if policy == "stop":
        assert (code, state(run), saved["global_step"]) == (2, "failed", 3)
        assert err.startswith("error: step 5: the loss of rank 1 is inf")
        assert err.count("\n") == 1
        return
    assert (code, state(run), saved["global_step"]) == (0, "finished", 7), err
    counts = {float(moments["step"]) for moments in saved["optimizer_states"][0]["state"].values()}
    assert counts == {6.0 if policy == "skip" else 5.0}  # of 7 steps; a rollback also loses step 4
    assert saved["callbacks"]["Safety"]["skipped_steps"] == 1
    assert out.count("steps left out so far: 1") == 1
