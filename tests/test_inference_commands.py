"""The commands that use a trained model, from the command line on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import torch

import vitmae
from tests.command_line import run_command
from tests.trained.parts import image_folder, saved_run
from tests.weights.parts import Evil
from vitmae import embed, export, reconstruct


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: a run with its settings, and a folder of images."""
    saved_run(tmp_path / "runs" / "mae")
    (tmp_path / "runs" / "mae" / "config.yaml").write_text("choices: {}\n")
    image_folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("main", [embed.main, export.main, reconstruct.main])
def test_help_says_what_there_is_to_choose(place, capsys, main):
    done = run_command(main, "--help", capsys=capsys)
    assert done.code == 0
    assert "ckpt=" in done.out
    assert "Examples:" in done.out


def test_a_run_is_exported_beside_its_checkpoints_and_its_bundle_opened(place, capsys):
    done = run_command(export.main, "ckpt=last", capsys=capsys)
    assert (done.code, done.err) == (0, "")
    folder = place / "runs" / "mae" / "export" / "bundle-full"
    assert files(folder) == ["README.md", "model.json", "model.safetensors"]
    assert all(name in done.out for name in files(folder))
    assert vitmae.load(folder, device="cpu").encode(str(place / "photos" / "a" / "000.png")).shape == (1, 32)
    assert run_command(export.main, "ckpt=runs/mae", "format=timm", "what=encoder", "out=timm", capsys=capsys).code == 0
    assert files(place / "timm") == ["config.json", "model.safetensors"]
    assert files(place) == ["photos", "runs", "timm"], "a command leaves nothing else behind"


class Hub:
    """The hub up to the network's edge: what it was asked for."""

    asked = []  # noqa: RUF012

    def create_repo(self, name, **settings):
        self.asked.append(("create", name, settings))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id, files(folder_path)))


def test_a_bundle_is_handed_to_the_hub(place, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    done = run_command(export.main, "ckpt=last", "push=me/my-mae", capsys=capsys)
    assert done.code == 0
    assert "uploaded to https://hub/me/my-mae" in done.out
    assert Hub.asked == [
        ("create", "me/my-mae", {"private": True, "exist_ok": True}),
        ("upload", "me/my-mae", ["README.md", "model.json", "model.safetensors"]),
    ]


def test_a_hub_that_cannot_be_reached_leaves_the_bundle_and_says_what_to_do(place, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = run_command(export.main, "ckpt=last", "push=me/my-mae", "out=bundle", capsys=capsys)
    assert done.code == 2
    assert "hf upload me/my-mae" in done.err
    assert files(place / "bundle") == ["README.md", "model.json", "model.safetensors"]


def test_a_folder_is_embedded(place, capsys):
    done = run_command(
        embed.main,
        "ckpt=runs/mae",
        "images=photos",
        "out=vectors/photos.parquet",
        "num_workers=0",
        "pooling=cls",
        capsys=capsys,
    )
    assert (done.code, done.err) == (0, "")
    assert "10 vectors of width 32" in done.out
    assert len(pq.read_table(place / "vectors" / "photos.parquet")) == 10


def test_a_folder_is_reconstructed(place, capsys):
    done = run_command(reconstruct.main, "ckpt=best", "images=photos", "passes=4", "panels=1", capsys=capsys)
    assert done.code == 2  # no best.ckpt yet
    done = run_command(
        reconstruct.main, "ckpt=last", "images=photos", "passes=4", "panels=1", "num_workers=0", capsys=capsys
    )
    assert (done.code, done.err) == (0, "")
    assert files(place / "reconstructions") == ["errors.npy", "panels", "scores.csv"]
    with (place / "reconstructions" / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10


@pytest.mark.parametrize(
    ("main", "arguments", "reason"),
    [
        (export.main, [], "ckpt must be given"),
        (export.main, ["ckpt=nowhere.ckpt"], "no such file or folder"),
        (export.main, ["ckpt=runs/nowhere"], "no such file or folder"),
        (export.main, ["ckpt="], "ckpt=: must be a text that is not empty"),
        (export.main, ["ckpt=best"], "ckpt=best: no run below runs has a best.ckpt: give a path"),
        (export.main, ["ckpt=last", "out=note.txt"], "note.txt is there already"),
        (export.main, ["ckpt=last", "out=note.txt/x"], "out=note.txt/x cannot be written (Not a directory)"),
        (export.main, ["ckpt=photos"], "no checkpoint, run directory or bundle"),
        (export.main, ["ckpt=last", "formt=timm"], "unknown setting formt: did you mean format?"),
        (export.main, ["ckpt=last", "format=tf"], "format=tf: must be bundle, timm,"),
        (export.main, ["ckpt=last", "format=timm"], "export what=encoder"),
        (export.main, ["ckpt=last", "push=me"], "push=me: must be USER/REPO"),
        (export.main, ["ckpt=last", "format=hf", "push=me/it"], "push=me/it uploads a bundle"),
        (embed.main, ["ckpt=last"], "images must be given"),
        (embed.main, ["ckpt=last", "images=nowhere"], "images=nowhere does not exist"),
        (embed.main, ["ckpt=last", "images="], "images=: must be a text that is not empty"),
        (embed.main, ["ckpt=last", "images=empty"], "no image below empty"),
        (embed.main, ["ckpt=last", "images=note.txt"], "note.txt lists no image"),
        (
            embed.main,
            ["ckpt=last", "images=photos", "out=note.txt/x.parquet"],
            "out=note.txt/x.parquet cannot be written",
        ),
        (
            embed.main,
            ["ckpt=last", "images=photos", "num_workers=-1"],
            "num_workers=-1: must be ≥ 0 and ≤ 1024 or auto",
        ),
        (embed.main, ["ckpt=last", "images=photos", "batch_size=0"], "batch_size=0: must be ≥ 1"),
        (
            embed.main,
            ["ckpt=last", "images=photos", "out=features.csv"],
            "out=features.csv: the name must end in .parquet",
        ),
        (embed.main, ["ckpt=last", "images=photos", "batch_size=many"], "batch_size=many: must be a whole number"),
        (embed.main, ["ckpt=last", "images=photos", "device=gpu5"], "device=gpu5"),
        (reconstruct.main, ["ckpt=last", "images=photos", "mask=0.5", "passes=2"], "exclude each other"),
        (reconstruct.main, ["ckpt=last", "images=photos", "mask=stripes"], "mask=stripes"),
        (reconstruct.main, ["ckpt=last", "images=photos", "mask=0.99"], "mask=0.99 leaves no visible patch"),
        (reconstruct.main, ["ckpt=last", "images=photos", "mask=nan"], "mask=NaN: must be finite"),
        (reconstruct.main, ["ckpt=last", "images=photos", "mask=-1"], "mask=-1: must be a ratio between 0 and 1"),
        (
            reconstruct.main,
            ["ckpt=last", "images=photos", "mask=note.txt"],
            "mask=note.txt cannot be read (the file is empty)",
        ),
        (reconstruct.main, ["ckpt=last", "images=photos", "out=note.txt"], "out=note.txt is there already"),
        (reconstruct.main, ["ckpt=last", "images=photos", "out=note.txt/x"], "out=note.txt/x cannot be written"),
        (reconstruct.main, ["ckpt=last", "images=photos", "panels=-1"], "panels=-1: must be ≥ 0 or null"),
        (reconstruct.main, ["ckpt=last", "images=photos", "passes=99"], "passes=99: must be between 2 and 24"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(place, capsys, main, arguments, reason):
    (place / "note.txt").write_text("")
    (place / "empty").mkdir()
    done = run_command(main, *arguments, capsys=capsys)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert reason in done.err
    assert done.err.count("\n") == 1
    assert files(place) == ["empty", "note.txt", "photos", "runs"], "a mistake leaves nothing behind"


def damage(path, how):
    """What a copy that was cut short, somebody's editor or another version may leave of a bundle."""
    weights, about = path / "model.safetensors", json.loads((path / "model.json").read_text())
    if how == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:500])
    elif how == "weights missing":
        weights.unlink()
    elif how == "settings missing":
        del about["config"]
    elif how == "a setting that is none":
        about["config"]["backbone"]["embed_dmi"] = 48
    elif how == "weights of another model":
        about["config"]["backbone"]["embed_dim"] = 48
    elif how == "a call of something else":
        about["config"]["backbone"]["_target_"] = "os.system"
    elif how == "a strange version":
        about["vitmae_format"] = "new"
    about.pop("sha256", None)  # somebody has edited the file
    (path / "model.json").write_text(json.dumps(about))


def test_a_users_own_class_is_opened_by_a_command_that_is_told_to_trust_it(place, capsys):
    assert run_command(export.main, "ckpt=last", "out=own", capsys=capsys).code == 0
    about = json.loads((place / "own" / "model.json").read_text())
    about["config"]["model"]["_target_"] = "tests.weights.test_saved.Own"
    del about["sha256"]
    (place / "own" / "model.json").write_text(json.dumps(about))
    words = ("ckpt=own", "images=photos", "out=own.parquet")
    assert run_command(embed.main, *words, capsys=capsys).code == 2
    assert run_command(embed.main, *words, "trust=[tests.weights.test_saved.Own]", capsys=capsys).code == 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("weights cut short", "model.safetensors is damaged"),
        ("weights missing", "model.safetensors: there is no such file"),
        ("settings missing", "its settings or its weights are missing"),
        ("a setting that is none", "did you mean backbone.embed_dim?"),
        ("weights of another model", "its weights are not those of its settings"),
        ("a call of something else", "builds os.system, which is not allowed there: refused"),
        ("a strange version", "written by a newer vitmae"),
    ],
)
def test_a_damaged_bundle_is_one_line_and_exit_code_2(place, capsys, how, reason):
    assert run_command(export.main, "ckpt=last", "out=bundle", capsys=capsys).code == 0
    damage(place / "bundle", how)
    done = run_command(embed.main, "ckpt=bundle", "images=photos", capsys=capsys)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "bundle" in done.err
    assert reason in done.err


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_checkpoint_cut_short_is_one_line_and_exit_code_2(place, capsys, keep):
    path = place / "runs" / "mae" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    for main, more in ((export.main, []), (embed.main, ["images=photos"]), (reconstruct.main, ["images=photos"])):
        done = run_command(main, "ckpt=last", *more, capsys=capsys)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "last.ckpt is damaged" in done.err


def test_a_checkpoint_with_code_in_it_is_refused_by_every_command_and_the_code_not_run(place, capsys):
    torch.save({"vitmae_config": {}, "state_dict": Evil(place / "owned")}, place / "evil.ckpt")
    for main, more in ((export.main, []), (embed.main, ["images=photos"]), (reconstruct.main, ["images=photos"])):
        done = run_command(main, "ckpt=evil.ckpt", *more, capsys=capsys)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "evil.ckpt is refused" in done.err
    assert not (place / "owned").exists()


def test_an_export_that_cannot_hold_the_model_is_one_line_and_exit_code_2(place, capsys):
    """The run's images are rectangles, and it has a decoder."""
    for layout in ("timm", "hf", "fair"):
        done = run_command(export.main, "ckpt=last", f"format={layout}", "out=out", capsys=capsys)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"format={layout} cannot hold this model" in done.err
        assert files(place) == ["photos", "runs"]


def test_a_model_without_a_decoder_refuses_to_reconstruct(place, capsys):
    saved_run(place / "runs" / "vit", "vit")
    done = run_command(reconstruct.main, "ckpt=runs/vit", "images=photos", capsys=capsys)
    assert done.code == 2
    assert "no trained decoder" in done.err


@pytest.mark.slow
def test_an_embedding_that_is_killed_and_started_again_writes_the_same_file(place):
    """A real process and a real SIGKILL, after its first chunk is on disk."""
    image_folder(place / "photos", count=3000, size=(16, 24))
    command = [sys.executable, "-m", "vitmae.embed", "ckpt=runs/mae", "images=photos", "batch_size=32", "num_workers=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "out=whole.parquet"], check=True, env=environment)
    process = subprocess.Popen([*command, "out=killed.parquet"], env=environment)
    parts = place / "killed.parquet.parts"
    while not list(parts.glob("0*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "killed.parquet").exists()
    subprocess.run([*command, "out=killed.parquet"], check=True, env=environment)
    assert (place / "killed.parquet").read_bytes() == (place / "whole.parquet").read_bytes()
