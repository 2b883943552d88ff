"""A step that was not finite is computed again from its file alone, and the first bad tensor is named."""

import json
from pathlib import Path

import pytest
import torch

from tests.command_line import run_command
from tests.test_train_command import TINY, only
from tests.training.standin import QUIET
from vitmae import replay, train
from vitmae.training.replay import replay_step
from vitmae.training.safety import Safety

pytestmark = QUIET

BLOCK = "backbone.vit.blocks.0.mlp.fc1"


def overflow(monkeypatch, step):
    """Before a step, one weight of a block becomes so large that its product is infinite."""
    start = Safety.on_train_batch_start

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        start(self, trainer, pl_module, batch, batch_idx)
        if trainer.global_step == step - 1:
            pl_module.get_parameter(f"{BLOCK}.weight").data[3] = 3e38

    monkeypatch.setattr(Safety, "on_train_batch_start", on_train_batch_start)


@pytest.fixture
def failed(tmp_path, monkeypatch, capsys):
    """A run that has stopped at step 3, and its saved step."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            overflow(patch, 3)
            done = run_command(train.main, *TINY, "trainer.max_steps=5", *words, capsys=capsys)
        assert done.code == 2, done.err
        assert done.err.count("\n") == 1
        return done.err, only("2*/*") / "nonfinite" / "step3.ckpt"

    return run


@pytest.mark.parametrize("words", [["model=mae"], ["model=vit", "backbone.drop_rate=0.5"]])
def test_the_command_of_the_error_names_the_module_that_overflows_first(failed, capsys, words):
    error, bundle = failed(*words)
    command = error.partition("python -m vitmae.replay ")[2].partition(";")[0]
    assert command == f"bundle={bundle}"
    done = run_command(replay.main, command, "device=cpu", capsys=capsys)
    assert done.code == 0, done.err
    assert "step 3 in 32-true; the run saw loss " in done.out
    table = [line.split()[:2] for line in done.out.splitlines() if line.startswith("forward")]
    assert table[0] == ["forward", BLOCK]
    assert "gradient" in done.out


def test_an_unspoiled_step_is_replayed_bit_for_bit(tmp_path, monkeypatch, capsys):
    """The gradient alone was spoiled, so the loss is finite and can be compared."""

    def spoil(self, trainer, pl_module):
        if trainer.global_step == 2:
            next(pl_module.parameters()).grad.fill_(float("inf"))

    monkeypatch.chdir(tmp_path)
    for model in ("mae", "masked_patch", "vit"):
        words = [*TINY, f"model={model}", "backbone.drop_rate=0.5", "data.random_erasing=0.5", f"name={model}"]
        words += ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2"]
        with monkeypatch.context() as patch:
            patch.setattr(Safety, "on_after_backward", spoil)
            done = run_command(train.main, *words, "trainer.max_steps=4", capsys=capsys)
            assert "step 3: " in done.err, done.err
        bundle = only(f"2*/*-{model}") / "nonfinite" / "step3.ckpt"
        found = replay_step(bundle, torch.device("cpu"))
        assert found.findings == []
        assert len(found.losses) == 1
        assert len(found.losses[0]) == 2
        assert torch.tensor(found.losses[0]).div(2).sum().item() == found.values["loss"]
        done = run_command(replay.main, f"bundle={bundle}", "device=cpu", capsys=capsys)
        assert "all tensors are finite here" in done.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("batches"), "is a checkpoint, not a saved step"),
        (lambda content: content.update(batches=[]), "holds no batch"),
        (lambda content: content.update(batches=[[{"images": 1}]]), "is damaged"),
        (lambda content: content.update(batches=[[{"images": 1, "labels": 2, "keys": 3, "key": 4}]]), "is damaged"),
        (lambda content: content.update(batches=7), "is damaged"),
        (lambda content: content.update(precision=None), "is damaged"),
        (lambda content: content["vitmae_config"]["model"].update(_target_="os.system"), "builds os.system"),
    ],
)
def test_a_file_that_is_no_saved_step_is_one_line(failed, capsys, change, message):
    _, bundle = failed()
    content = torch.load(bundle, weights_only=True)
    change(content)
    torch.save(content, "other.ckpt")
    done = run_command(replay.main, "bundle=other.ckpt", capsys=capsys)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_replay_needs_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "bundle must be given" in run_command(replay.main, capsys=capsys).err
    assert "there is no such file" in run_command(replay.main, "bundle=x.ckpt", capsys=capsys).err
    assert not list(Path().iterdir())


def test_a_run_that_stopped_says_so_and_continues_with_a_smaller_learning_rate(failed, capsys):
    """The remedy of the error, as it is written there."""
    error, bundle = failed("checkpoint.every_n_steps=1")
    run = bundle.parent.parent
    assert json.loads((run / "summary.json").read_text())["state"] == "failed"
    assert f"python -m vitmae.train ckpt={run}" in error
    done = run_command(train.main, f"ckpt={run}", "model.optimizer.base_lr=1e-4", capsys=capsys)
    assert done.code == 0, done.err
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert {group["initial_lr"] for group in saved["optimizer_states"][0]["param_groups"]} == {1e-4 * 64 / 256}
