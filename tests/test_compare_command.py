"""`python -m vitmae.compare` from the command line on."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.command_line import run_command
from vitmae import compare
from vitmae.compare import split_overrides
from vitmae.errors import UserError


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("[]", []),
        ("", []),
        ("[a=1,b=[2,3]]", ["a=1", "b=[2,3]"]),
        ("a=1 b='x, y'", ["a=1", "b='x, y'"]),
        ("[model.optimizer.betas=[0.9,0.95], c={d: 1}]", ["model.optimizer.betas=[0.9,0.95]", "c={d: 1}"]),
    ],
)
def test_overrides_part_at_commas_and_blanks_outside_of_brackets(text, overrides):
    assert split_overrides(text) == overrides


@pytest.mark.parametrize("text", ["[a=[1,2]", "a='x"])
def test_what_is_not_closed_is_refused(text):
    with pytest.raises(UserError, match="not closed"):
        split_overrides(text)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "out must be given"),
        (["out=c", "methods=[mea]"], "did you mean model=mae?"),
        (["out=c", "methods=[scratch]", "mae=[model.mask_ratio=0.5]"], "must contain mae"),
        (["out=c", "mae=[model.mask_ration=0.5]"], "did you mean model.mask_ratio?"),
        (["out=c", "mae=[model.mask_ratio=much]"], "must be a number"),
        (["out=c", "data=folders"], "did you mean data=folder?"),
        (["out=c", "labels=0"], "labels=0"),
        (["out=c", "finetune=[model=mae]"], "finetune=model=mae: a comparison sets this itself"),
        (["out=c", "data.train_fraction=0.1"], "see methods, seeds, labels"),
        (["out=c", "probes=[knnn]"], "probes=["),
        (["out=c", "evaluate=[lmit=3]"], "did you mean limit?"),
        (["out=c", "probes=[dense]"], "probes=["),
        (["out=c", "model.mask_ratio=0.5"], "pretrain=[model.mask_ratio=0.5]"),
        (["out=c", "train=[trainer.max_epoch=3]"], "did you mean trainer.max_epochs?"),
        (["out=/dev/null/c", "methods=[scratch]"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(tmp_path, monkeypatch, capsys, overrides, said):
    monkeypatch.chdir(tmp_path)
    done = run_command(compare.main, *overrides, capsys=capsys)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert said in done.err
    assert not (tmp_path / "c" / "runs").exists()


OVERRIDES = [
    "methods=[scratch,mae]",
    "seeds=[0]",
    "probes=[knn]",
    "logger=csv",
    "trainer.max_epochs=2",
    "trainer=cpu",
    "panel.images=2",
    "probe.images=100",
    "scratch=[]",
    "finetune=[model.pool=avg]",
    "data.num_workers=0",
]


@pytest.mark.slow
def test_an_interrupted_comparison_resumes_and_ends_with_a_page(tmp_path):
    command = [sys.executable, "-m", "vitmae.compare", f"out={tmp_path / 'c'}", *OVERRIDES]
    environment = os.environ | {"VITMAE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not list((tmp_path / "c").glob("runs/mae-*/metrics.csv")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75, said
    assert "run the same command to resume" in said
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("runs/scratch-*/checkpoints/last.ckpt")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already finished" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first} == first
    lines = list(csv.DictReader((tmp_path / "c" / "report.csv").read_text().splitlines()))
    assert {(line["probe"], line["method"]) for line in lines} == {
        (probe, method) for probe in ("knn", "fine-tuning") for method in ("scratch", "mae")
    }
    assert (tmp_path / "c" / "report.html").stat().st_size > 10_000


def test_right_words_pass_the_checks_and_reach_the_plan(tmp_path, monkeypatch, capsys):
    planned = []
    monkeypatch.setattr("vitmae.comparison.runner.run_jobs", lambda rows, *others: planned.extend(rows) or iter(()))
    overrides = [
        *OVERRIDES,
        "evaluate=[limit=50,data.batch_size=8]",
        "train=[compile=false]",
        "mae=[model.mask_ratio=0.5]",
    ]
    done = run_command(compare.main, f"out={tmp_path / 'c'}", *overrides, capsys=capsys)
    assert (done.code, done.err) == (0, "")
    scratch, mae = planned
    assert {"logger=csv", "trainer=cpu", "compile=false"} <= set(scratch.finetunes[0].overrides)
    assert {"model.mask_ratio=0.5", "logger=csv"} <= set(mae.pretrain.overrides)
    assert {"limit=50", "data.batch_size=8"} <= set(mae.probes.overrides)
