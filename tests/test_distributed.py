"""Two processes are one process with twice the batch: the same samples, masks, weights and held-out values."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vitmae.training.loggers import read_metrics

SETTINGS = [
    "logger=none",
    "backbone.depth=1",
    "backbone.embed_dim=24",
    "data.crop=none",
    "trainer.precision=32-true",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=2",
    "trainer.limit_val_batches=2",
    # not Adam: it scales the rounding noise of gradients that are zero by definition (a key's bias) up to a full step
    "model.optimizer.name=momentum",
    "model.optimizer.betas=null",
    "model.optimizer.base_lr=0.4",
    "probe.images=50",
    "panel.images=2",
    "trainer.num_sanity_val_steps=0",
]


def run(folder, *overrides):
    command = [sys.executable, "-m", "vitmae.train", *SETTINGS, f"hydra.run.dir={folder}", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    logged = [{**row} for row in read_metrics(folder / "metrics.csv")[1] if row["train/loss"]]
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True), metrics, logged


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mae", "masked_patch", "vit"])
def test_two_processes_equal_one_process_with_twice_the_batch(model, tmp_path):
    one, one_metrics, one_logged = run(tmp_path / "one", f"model={model}", "trainer=cpu", "data.batch_size=32")
    two, two_metrics, two_logged = run(
        tmp_path / "two",
        f"model={model}",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.batch_size=16",
    )
    assert one["global_step"] == two["global_step"] == 4
    for name, weight in one["state_dict"].items():
        assert torch.allclose(weight, two["state_dict"][name], atol=2e-6), name
    held_out = {name: value for name, value in one_metrics.items() if name.startswith("val/")}
    assert "val/loss" in held_out
    assert {name: two_metrics[name] for name in held_out} == pytest.approx(held_out, rel=1e-4)
    assert [row["step"] for row in one_logged] == [row["step"] for row in two_logged] == ["2", "4"]
    for ours, theirs in zip(one_logged, two_logged, strict=True):
        names = [name for name in ours if name.startswith("train/") and name != "train/images_per_s" and ours[name]]
        assert {name: float(theirs[name]) for name in names} == pytest.approx(
            {name: float(ours[name]) for name in names}, rel=1e-5
        )
