"""An objective, a data source and a backbone in a user's own folder, as docs/your_own.md shows them, in every command."""

import csv
import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vitmae
from tests.command_line import process_restored, run_command
from tests.pages import write_own_files
from vitmae import compare, embed, evaluate, export, train
from vitmae.errors import UserError

CLASSES = ["mine.objective.SimMIM", "mine.stripes.Stripes", "mine.encoder.Encoder"]
TRUST = f"trust=[{','.join(CLASSES)}]"
MINE = ["--config-dir", "mine", "data=mine", "backbone=mine"]
TINY = ["trainer=cpu", "trainer.max_epochs=1", "logger=csv", "probe.images=50", "probe.k=5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The working directory: the files of the page in mine/, and a run of their classes."""
    folder = tmp_path_factory.mktemp("home")
    write_own_files(folder)
    (folder / "photos").mkdir()
    for grey in (50, 200):
        Image.new("L", (8, 8), grey).save(folder / "photos" / f"{grey}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("VITMAE_CACHE", str(folder / "cache"))
        with process_restored():
            assert train.main([*MINE, "model=mine", *TINY, "hydra.run.dir=runs/mine"]) == 0
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_run_of_own_classes_resumes(home, capsys):
    epochs = len((home / "runs" / "mine" / "metrics.csv").read_text().splitlines())
    done = run_command(train.main, "ckpt=runs/mine", TRUST, "trainer.max_epochs=2", capsys=capsys)
    assert (done.code, done.err) == (0, "")
    assert json.loads((home / "runs" / "mine" / "summary.json").read_text())["state"] == "finished"
    assert len((home / "runs" / "mine" / "metrics.csv").read_text().splitlines()) > epochs


@pytest.mark.parametrize("words", [[], ["--config-dir", "mine", "data=mine", "data.train_fraction=0.5"]])
def test_an_own_encoder_is_evaluated_on_own_images(home, capsys, words):
    done = run_command(
        evaluate.main, "ckpt=runs/mine", TRUST, *words, "probe=knn", "knn.ks=[1]", "out=scores.json", capsys=capsys
    )
    assert (done.code, done.err) == (0, "")
    about = json.loads((home / "scores.json").read_text())
    assert about["images"] == {"train": 60 if words else 120, "val": 30, "test": 50}


def test_an_own_encoder_embeds_a_folder(home, capsys):
    done = run_command(embed.main, "ckpt=runs/mine", TRUST, "images=photos", "out=vectors.parquet", capsys=capsys)
    assert (done.code, done.err) == (0, "")
    assert len(pq.read_table(home / "vectors.parquet")) == 2


def test_a_bundle_of_own_classes_opens_and_its_card_describes_them(home, capsys):
    done = run_command(export.main, "ckpt=runs/mine", TRUST, "out=bundle", capsys=capsys)
    assert (done.code, done.err) == (0, "")
    model = vitmae.load(home / "bundle", trust=CLASSES)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(model.encode(images), vitmae.load(home / "runs" / "mine", trust=CLASSES).encode(images))
    card = (home / "bundle" / "README.md").read_text()
    for said in ("Encoder, SimMIM", "normalised pixels of hidden patches", "arxiv:2111.09886", "2 blocks of width 16"):
        assert said in card


@pytest.mark.parametrize("layout", ["timm", "hf", "fair", "onnx", "torch_export"])
def test_formats_without_a_place_for_an_own_objective_refuse_it(home, capsys, layout):
    done = run_command(export.main, "ckpt=runs/mine", TRUST, f"format={layout}", "out=elsewhere", capsys=capsys)
    assert done.code == 2
    assert re.fullmatch(rf"error: format={layout} cannot hold this model: .*\n", done.err)
    assert not (home / "elsewhere").exists()


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train.main, ["ckpt=runs/mine"]),
        (evaluate.main, ["ckpt=runs/mine"]),
        (embed.main, ["ckpt=runs/mine", "images=photos", "out=a.parquet"]),
        (export.main, ["ckpt=runs/mine", "out=untrusted"]),
        (train.main, [*MINE, "model=mine", *TINY, "backbone.weights=runs/mine", "hydra.run.dir=runs/untrusted"]),
    ],
)
def test_a_checkpoint_of_own_classes_is_refused_without_trust_and_says_how(home, capsys, main, words):
    done = run_command(main, *words, capsys=capsys)
    assert done.code == 2
    assert re.fullmatch(r"error: [^\n]*trust=\[[^\n]*\n", done.err)


def test_loading_untrusted_classes_in_python_says_how(home):
    with pytest.raises(UserError, match=r"trust=\["):
        vitmae.load(home / "runs" / "mine")


def test_own_choices_are_listed_and_found_by_their_nearest_name(home, capsys):
    assert (
        "[mae], masked_patch, mine, vit" in run_command(train.main, "--config-dir", "mine", "--help", capsys=capsys).out
    )
    done = run_command(train.main, "--config-dir=mine", "model=mie", capsys=capsys)
    assert "did you mean model=mine?" in done.err
    done = run_command(train.main, *MINE, "model=mine", "model.mask_ration=0.5", capsys=capsys)
    assert "did you mean model.mask_ratio?" in done.err


def test_a_comparison_plans_an_own_method_by_what_its_class_says(home, capsys, monkeypatch):
    planned = []
    monkeypatch.setattr("vitmae.comparison.runner.run_jobs", lambda rows, *others: planned.extend(rows) or iter(()))
    words = [*MINE, *TINY, "methods=[scratch,mae,mine]", "seeds=[0]", "out=planned", "mine=[model.mask_ratio=0.3]"]
    done = run_command(compare.main, *words, capsys=capsys)
    assert (done.code, done.err) == (0, "")
    mine = planned[2]
    assert [row.method.title for row in planned] == ["from scratch", "masked autoencoder", "SimMIM"]
    assert {"model=mine", "data=mine", "model.mask_ratio=0.3"} <= set(mine.pretrain.overrides)
    assert not any("mask_ratio" in word for word in planned[1].pretrain.overrides)
    for job in (*mine.finetunes, mine.probes, *mine.classifiers):
        assert f"--config-dir={home / 'mine'}" in job.arguments
        assert f"trust=[{','.join(sorted(CLASSES))}]" in job.arguments


@pytest.mark.slow
def test_a_comparison_with_an_own_method_ends_with_its_column_and_its_cost(home):
    command = [
        sys.executable,
        "-m",
        "vitmae.compare",
        *MINE,
        *TINY,
        "out=compared",
        "methods=[scratch,mine]",
        "seeds=[0]",
    ]
    done = subprocess.run([*command, "probes=[knn]"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = list(csv.DictReader((home / "compared" / "report.csv").read_text().splitlines()))
    assert {(line["probe"], line["method"]) for line in lines} == {
        (probe, method) for probe in ("knn", "fine-tuning") for method in ("scratch", "mine")
    }
    page = (home / "compared" / "report.md").read_text()
    images, flops = re.search(r"\| SimMIM, pre-training +\| 1 +\| ([\d,]+) +\| (\S+)", page).groups()
    assert images == "112"
    assert float(flops) > 0
