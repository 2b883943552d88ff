"""One door for all commands."""

import subprocess
import sys

import pytest

import vitmae.__main__ as door


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_command_is_reached_through_the_one_door(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vitmae", name, "--help"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert door.main() == 0
    assert f"python -m vitmae.{name}" in capsys.readouterr().out


def test_every_command_is_in_the_list_of_the_door(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vitmae"])
    assert door.main() == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in door.COMMANDS)


@pytest.mark.parametrize(
    ("name", "hint"), [("trian", "did you mean train?"), ("xyz", "the commands are train, evaluate")]
)
def test_an_unknown_command_is_one_line_with_the_nearest_and_code_2(name, hint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vitmae", name])
    assert door.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert hint in said


@pytest.mark.slow
def test_processes_that_a_run_starts_run_the_same_command(tmp_path):
    words = ["trainer=debug", "trainer.devices=2", "trainer.strategy=ddp", "logger=csv", "panel.every_n_epochs=1"]
    command = [sys.executable, "-m", "vitmae", "train", *words, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert '"state": "finished"' in (tmp_path / "run" / "summary.json").read_text()
