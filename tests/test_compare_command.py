"""`python -m vitmae.compare` from the command line on."""

import csv
import os
import shutil
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


LATER_STAGES = [
    (["data=folder", "data.path=/nope"], "scratch, finetune: data.path=/nope"),
    (["data=folder", "data.path=empty"], "scratch, finetune: no image below empty"),
    (["mae=[model.mask_ratio=2]"], "mae, pretrain: model.mask_ratio=2: must be > 0 and < 1"),
    (["mae=[backbone.patch_size=3]"], "mae, pretrain: "),
    (["finetune=[model.pool=mean]"], "scratch, finetune: model.pool=mean"),
    (["finetune=[trainer.max_epochs=5,model.optimizer.warmup_epochs=5]"], "warmup_epochs=5 is"),
    (["finetune=[model.num_classes=3]"], "finetune: model.num_classes=3, but the data has 10 classes"),
    (["scratch=[model.freeze=99]"], "scratch, finetune: "),
    (["labels=0.001"], "no training image is left: raise"),
    (["labels=0.02", "data.batch_size=8"], "fewshot.shots=[5]: the smallest class has"),
    (["evaluate=[fewshot.shots=[5000]]", "probes=[fewshot]"], "probes: fewshot.shots=[5000]"),
    (["evaluate=[knn.ks=[5000]]"], "no k fits a bank of"),
    (["evaluate=[attentive.num_heads=5]", "probes=[attentive]"], "attentive.num_heads=5: must be a divisor"),
    (["evaluate=[linear.epochs=3]", "probes=[linear]"], "linear.warmup_epochs=10: must be < linear.epochs=3"),
    (["evaluate=[data=shapes]"], "evaluate=[data=…]: these images have other classes"),
    (["data.batch_size=2000"], "data.batch_size=2000 is more than the"),
    (["logger=csvv"], "did you mean logger=csv?"),
    (["experiment=nope"], "unknown choice experiment=nope"),
    (["train=[data.hflip=perhaps]"], "data.hflip=perhaps"),
    (["trainer.accelerator=gpu"], "no GPU is visible here"),
    (["+trainer.callbacks=[]"], "trainer.callbacks has no effect: the run sets it itself"),
    (["pretrain=[model.weights=nope.pt]"], "nope.pt"),
    (["backbone=vit_huge", "backbone.patch_size=2", "seeds=[0,1,2,3,4,5,6,7,8,9]"], "GiB are free"),
]


@pytest.mark.parametrize(("overrides", "said"), LATER_STAGES, ids=[" ".join(case[0])[:60] for case in LATER_STAGES])
def test_what_a_later_stage_would_refuse_is_refused_before_the_first_job(
    tmp_path, monkeypatch, capsys, overrides, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("vitmae.comparison.runner.run_jobs", lambda *given: pytest.fail("a job was started"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 2**30))
    settings = ["trainer=cpu", "logger=csv", "methods=[scratch,mae]", "seeds=[0]", "probes=[knn,fewshot]"]
    shots = [] if any("evaluate=" in word for word in overrides) else ["evaluate=[fewshot.shots=[5]]"]
    done = run_command(compare.main, "out=c", *settings, *shots, *overrides, capsys=capsys)
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1, done.err
    assert said in done.err


def test_images_are_opened_once_for_all_jobs(tmp_path, monkeypatch, capsys):
    from vitmae.data.sources.digits import Digits

    opened, load = [], Digits.load
    monkeypatch.setattr(Digits, "load", lambda *given: opened.append(given) or load(*given))
    monkeypatch.setattr("vitmae.comparison.runner.run_jobs", lambda *given: iter(()))
    done = run_command(compare.main, f"out={tmp_path / 'c'}", *OVERRIDES, "labels=0.5", "seeds=[0,1]", capsys=capsys)
    assert (done.code, len(opened)) == (0, 1), done.err


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
    assert "run the same command again" in said
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
