"""`python -m vitmae.evaluate` from the command line on."""

import json
import subprocess
import sys

import pytest

from tests.command_line import run_command
from tests.data.builders import write_classes
from tests.evaluation.parts import digits_run
from vitmae import evaluate
from vitmae.weights import saved


@pytest.fixture
def place(tmp_path, monkeypatch):
    digits_run(tmp_path / "runs" / "mae")
    (tmp_path / "runs" / "mae" / "config.yaml").write_text("choices: {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_runs_own_images_are_evaluated_and_results_lie_beside_it(place, capsys):
    done = run_command(evaluate.main, "ckpt=last", "probe=[knn,fewshot]", "knn.ks=[1,5]", "encoder=both", capsys=capsys)
    assert (done.code, done.err) == (0, "")
    (file,) = (place / "runs" / "mae" / "evaluation").glob("*.json")
    content = json.loads(file.read_text())
    assert content["split"] == "test"
    assert content["images"] == {"train": 345, "val": 288, "test": 360}, "train_fraction is the run's own"
    kinds = {(score["encoder"], score["probe"], score["pooling"]) for score in content["scores"]}
    assert kinds == {(e, p, q) for e in ("trained", "untrained") for p in ("knn", "fewshot") for q in ("cls", "avg")}
    assert str(file.relative_to(place)) in done.out
    assert "untrained  knn" in done.out


def test_all_is_what_applies(place, capsys):
    words = [
        "linear.epochs=2",
        "linear.warmup_epochs=0",
        "attentive.epochs=2",
        "attentive.warmup_epochs=0",
        "logistic.cs=[1.0]",
        "limit=100",
        "out=scores.json",
    ]
    done = run_command(evaluate.main, "ckpt=runs/mae", *words, capsys=capsys)
    assert (done.code, done.err) == (0, "")
    probes = {score["probe"] for score in json.loads((place / "scores.json").read_text())["scores"]}
    assert probes == {"knn", "linear", "logistic", "fewshot", "attentive", "collapse"}


def test_other_images_are_seen_at_the_checkpoints_size_and_in_its_channels(place, capsys):
    write_classes(place / "photos", {"cat": 12, "dog": 12})
    words = ["data=folder", "data.path=photos", "data.val_fraction=0.3", "data.batch_size=4", "data.num_workers=0"]
    done = run_command(evaluate.main, "ckpt=last", "probe=knn", "knn.ks=[1]", *words, "out=a.json", capsys=capsys)
    assert (done.code, done.err) == (0, "")
    content = json.loads((place / "a.json").read_text())
    assert content["img_size"] == [8, 8]
    assert content["split"] == "val", "a folder without a test split"
    done = run_command(
        evaluate.main, "ckpt=last", "probe=knn", "knn.ks=[1]", *words, "data.img_size=16", "out=b.json", capsys=capsys
    )
    assert done.code == 0
    assert "interpolated" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ckpt=nowhere"], "nowhere"),
        ([], "ckpt must be given"),
        (["ckpt=last", "probe=kn"], "must be all or knn,"),
        (["ckpt=last", "data=fodler"], "did you mean data=folder?"),
        (["ckpt=last", "data.in_chans=3"], "leave data.in_chans out"),
        (["ckpt=last", "probe=dense"], "data.source.masks"),
        (["ckpt=last", "probe=classifier"], "fine-tune it with model=vit"),
        (["ckpt=last", "split=tset"], "must be val or test or null"),
        (["ckpt=last", "knn.k=3"], "did you mean knn.ks?"),
        (["ckpt=last", "out=scores.csv"], "must end in .json"),
        (["ckpt=last", "limit=0"], "limit=0: must be ≥ 1 or null"),
        (["ckpt=last", "backbone=vit_base"], "backbone"),
        (["ckpt=last", "fewshot.shots=[500]", "probe=fewshot"], "the smallest class has"),
        (["ckpt=last", "fewshot.shots=[0]"], "fewshot.shots=[0]: must be a list, each a whole number ≥ 1"),
        (["ckpt=last", "device=foo"], "device=foo"),
        (["ckpt=last", "precision=16-mixed"], "must be auto, 32-true or bf16-mixed"),
        (["ckpt=last", "probe=[]"], "name at least one probe, or all"),
        (["ckpt=last", "probe=classifier", "encoder=untrained"], "untrained weights have no classifier"),
        (["ckpt=last", "out=/dev/null/a.json"], "out=/dev/null/a.json cannot be written"),
        (["ckpt=last", "features=/dev/null/a"], "features=/dev/null/a cannot be written"),
        (["ckpt=last", "seed=-1"], "seed=-1"),
        (["-m", "ckpt=a,b"], "cannot sweep"),
        (["ckpt=last", "data.img_size=9"], "choose a multiple"),
    ],
)
def test_a_mistake_is_one_line(place, capsys, words, said):
    done = run_command(evaluate.main, *words, capsys=capsys)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert said in done.err


def test_probes_that_need_labels_refuse_images_without(place, capsys):
    write_classes(place / "classes", {"one": 12})
    (place / "classes" / "one").rename(place / "flat")
    words = ["data=folder", "data.path=flat", "data.val_fraction=0.3", "data.batch_size=2", "data.num_workers=0"]
    done = run_command(evaluate.main, "ckpt=last", "probe=knn", *words, capsys=capsys)
    assert done.code == 2
    assert "use class folders" in done.err
    done = run_command(evaluate.main, "ckpt=last", *words, capsys=capsys)
    assert (done.code, done.err) == (0, "")
    assert "RankMe" in done.out


def test_fewer_labelled_images_than_the_run_had_in_a_batch_are_enough(place, capsys):
    words = ["probe=knn", "knn.ks=[1]", "data.train_fraction=0.03", "out=a.json"]
    done = run_command(evaluate.main, "ckpt=last", *words, capsys=capsys)
    assert (done.code, done.err) == (0, "")
    assert json.loads((place / "a.json").read_text())["images"]["train"] < 64


def test_what_is_said_of_the_images_is_what_is_done(place, capsys):
    done = run_command(evaluate.main, "ckpt=last", "probe=knn", "split=val", "limit=50", "out=a.json", capsys=capsys)
    assert (
        "345 training images, 10% of these choose hyper-parameters, 288 are scored (val split), at 8 x 8 pixels; at most 50"
        in done.out
    )
    assert {score["num_images"] for score in json.loads((place / "a.json").read_text())["scores"]} == {50}


def test_a_classifier_scored_by_the_images_that_chose_it_is_said_to_be(place, capsys):
    digits_run(place / "runs" / "vit", "vit", num_classes=10)
    words = ["ckpt=runs/vit", "probe=classifier", "out=a.json"]
    assert "is too high" in run_command(evaluate.main, *words, "split=val", capsys=capsys).out
    assert "is too high" not in run_command(evaluate.main, *words, capsys=capsys).out


def test_settings_are_shown_before_anything_heavy_is_imported():
    code = (
        "import sys; from vitmae import evaluate; assert evaluate.main(['--cfg', 'job']) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_checkpoint_is_read_once(place, capsys, monkeypatch):
    read, paths = saved.read_file, []
    monkeypatch.setattr(saved, "read_file", lambda path: paths.append(path) or read(path))
    words = ["probe=knn", "knn.ks=[1]", "encoder=both", "data.img_size=16", "out=a.json"]
    assert run_command(evaluate.main, "ckpt=last", *words, capsys=capsys).code == 0
    assert [path.name for path in paths] == ["last.ckpt"]


def test_a_checkpoint_that_was_written_again_is_read_again(place, capsys):
    for seed in (3, 4):
        digits_run(place / "runs" / "mae", seed=seed)
        run_command(evaluate.main, "ckpt=last", "probe=collapse", f"out={seed}.json", capsys=capsys)
    first, second = (json.loads((place / f"{seed}.json").read_text())["scores"] for seed in (3, 4))
    assert first != second
