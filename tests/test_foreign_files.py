"""A file from elsewhere runs no code, and reads, writes and connects nowhere that the user did not name."""

import copy
import json
import os
import pickle
import shutil
import socket
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vitmae
from tests.command_line import run_command
from tests.trained.parts import image_folder
from tests.weights.parts import Evil
from vitmae import embed, evaluate, export, reconstruct, train
from vitmae.comparison.plan import Job
from vitmae.comparison.results import cost
from vitmae.composition import compose
from vitmae.config import build
from vitmae.errors import UserError
from vitmae.evaluation.data_settings import of_run
from vitmae.following import words_for_hydra
from vitmae.runs.resume import find_resumption
from vitmae.runs.sweep import read_sweep
from vitmae.weights.read import read_weights
from vitmae.weights.saved import hash_of, read_saved
from vitmae.weights.write import write_weights

TINY = ["trainer=cpu", "logger=[csv,wandb]", "backbone.embed_dim=16", "backbone.depth=1", "backbone.num_heads=2"]
CANARY = "canary"  # in the working directory: made by any of the nodes below, if it were built
TOUCH = {"_target_": "pathlib.Path.touch", "self": CANARY}
NODES = {
    "os": {"_target_": "os.system", "command": f"touch {CANARY}"},
    "subprocess": {"_target_": "subprocess.getoutput", "cmd": f"touch {CANARY}"},
    "exec": {"_target_": "timeit.timeit", "stmt": f"open({CANARY!r}, 'w').close()", "number": 1},
    "config.build": {"_target_": "vitmae.config.build", "node": {"_target_": "os.mkdir", "path": CANARY}},
    "folder": {"_target_": "os.makedirs", "name": CANARY},
    "local": {"_target_": "vitmae.weights.read.local", "source": "evil/model"},
    "torch hub": {"_target_": "torch.hub.load", "repo_or_dir": "evil/model", "model": "x"},
    "prefix": {"_target_": "vitmae_other.Thing"},
    "hub": {"_target_": "timm.create_model", "model_name": "hf-hub:evil/model", "pretrained": True},
    "composition": {"_target_": "vitmae.composition.compose", "overrides": [f"+runs2=${{claim:.,{CANARY}}}"]},
    "inner class": {"_target_": "vitmae.models.mae.MAE.__init__.__globals__"},
    "space": {"_target_": "vitmae.models.mae.MAE "},
}
PLACES = ["model", "model.optimizer", "model.mask_ratio", "backbone", "backbone.name"]
OF_RUNS = [
    "data",
    "data.source",
    "data.path",
    "trainer",
    "trainer.callbacks",
    "logger.csv",
    "probe",
    "panel",
    "choices.x",
]


@pytest.fixture(scope="module")
def good():
    """The content of a checkpoint as a run saves it."""
    settings = compose(TINY) | {"name": "mine", "choices": {"model": "mae", "data": "digits"}}
    backbone = build(settings["backbone"])
    objective = build(settings["model"], backbone=backbone, mean=[0.3], std=[0.4])
    return {
        "state_dict": objective.state_dict(),
        "vitmae_format": 1,
        "vitmae_config": settings,
        "vitmae_facts": {"class_names": list("0123456789"), "crop_pct": 1.0},
    }


@pytest.fixture
def content(good):
    """A copy of it, to be spoiled."""
    return {**good, "vitmae_config": copy.deepcopy(good["vitmae_config"]), "vitmae_facts": dict(good["vitmae_facts"])}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The working directory; nothing may be connected to from here."""
    (tmp_path / "vitmae_other.py").write_text(f"open({CANARY!r}, 'w').close()\nThing = dict\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VITMAE_CACHE", str(tmp_path / "cache"))

    def connect(*where):
        Path(CANARY).touch()
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    return tmp_path


def put(settings, name, value):
    *parents, last = name.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[last] = value


def save(content, folder=Path("run"), yaml=None):
    """A run directory with this content."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    text = json.dumps(content["vitmae_config"]) if yaml is None else yaml  # JSON is YAML
    (folder / "config.yaml").write_text(text)
    (folder / "environment.json").write_text('{"devices": ["cpu"]}')
    (folder / "metrics.csv").write_text("step\n1\n")
    return folder


def alone(run):
    """Its checkpoint as a file alone."""
    return (run / "checkpoints" / "last.ckpt").rename("alone.ckpt")


def bundle(content):
    """A bundle with these settings, and with a checksum that is right: whoever spoils a file makes it so."""
    folder = Path("bundle")
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in content["state_dict"].items()}, folder / "model.safetensors")
    about = {"vitmae_format": 1, "what": "full", "config": content["vitmae_config"], **content["vitmae_facts"]}
    (folder / "model.json").write_text(json.dumps(about | {"sha256": hash_of(about)}))
    return folder


def job(run):
    return Job("mae", 0, "pretrain", "train", (), run)


READERS = {
    "resume a run": lambda content: find_resumption(str(save(content)), Path("runs"), []),
    "resume a checkpoint": lambda content: find_resumption(str(alone(save(content))), Path("runs"), []),
    "open a run": lambda content: vitmae.load(save(content), "cpu"),
    "open a checkpoint": lambda content: vitmae.load(alone(save(content)), "cpu"),
    "open a bundle": lambda content: vitmae.load(bundle(content), "cpu"),
    "export": lambda content: write_weights(read_saved(save(content)), "bundle", "full", Path("exported")),
    "weights of a run": lambda content: read_weights(str(save(content))),
    "weights of a checkpoint": lambda content: read_weights(str(alone(save(content)))),
    "weights of a bundle": lambda content: read_weights(str(bundle(content))),
    "compare": lambda content: cost(job(save(content)), Path()),
    "evaluate, and the notebooks": lambda content: build(of_run(read_saved(save(content)))),
}
RESUMES = ("resume a run", "resume a checkpoint", "compare")


def refused(read, content, said=None):
    with pytest.raises(UserError, match=said) as error:
        read(content)
    assert "\n" not in str(error.value)
    assert not Path(CANARY).exists()
    return str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_the_file_that_is_spoiled_below_is_good(content, reader):
    READERS[reader](content)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("node", list(NODES)[:-4])  # the others name nothing, or try for long
def test_the_nodes_below_leave_a_trace_if_they_are_built(node):
    with suppress(Exception):  # the network's
        build(copy.deepcopy(NODES[node]))
    assert Path(CANARY).exists()


@pytest.mark.parametrize("reader", READERS)
def test_no_class_but_the_listed_ones_is_built_on_any_path(content, reader):
    for node in NODES.values():
        content["vitmae_config"]["model"]["optimizer"] = node
        said = refused(READERS[reader], content)
        assert "trust=[" in said or "${" in said


@pytest.mark.parametrize("reader", READERS)
def test_a_class_is_built_in_no_place_that_is_not_its_own_on_any_path(content, reader):
    places = PLACES + (OF_RUNS if reader in RESUMES else OF_RUNS[:3] if reader.startswith("evaluate") else [])
    for name in places:
        spoiled = {**content, "vitmae_config": copy.deepcopy(content["vitmae_config"])}
        put(spoiled["vitmae_config"], name, TOUCH)
        assert f"{name} builds pathlib.Path.touch" in refused(READERS[reader], spoiled)
    put(content["vitmae_config"], "model.optimizer.betas", [[{"deep": TOUCH}]])
    assert "model.optimizer.betas.0.0.deep builds" in refused(READERS[reader], content)


@pytest.mark.parametrize("main", [train.main, evaluate.main, embed.main, export.main, reconstruct.main])
def test_every_command_that_opens_a_checkpoint_refuses_in_one_line(content, main, capsys):
    image_folder(Path("photos"), count=2)
    content["vitmae_config"]["backbone"] = NODES["os"]
    words = ["images=photos"] if main in (embed.main, reconstruct.main) else []
    for ckpt in (save(content), save(content) / "checkpoints" / "last.ckpt", bundle(content)):
        if main is train.main and ckpt.name == "bundle":
            continue  # a bundle has nothing to resume from
        done = run_command(main, f"ckpt={ckpt}", *words, capsys=capsys)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert "backbone builds os.system" in done.err
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("setting", ["backbone.weights", "model.weights"])
def test_a_run_that_begins_with_spoiled_weights_is_refused_in_one_line(content, setting, capsys):
    content["vitmae_config"]["model"]["optimizer"] = NODES["config.build"]
    done = run_command(train.main, *TINY[:1], "logger=csv", f"{setting}={save(content)}", capsys=capsys)
    assert done.code == 2
    assert "model.optimizer builds vitmae.config.build" in done.err
    assert not Path(CANARY).exists()


SPOILED = {
    "defaults": ("defaults", [{"override /model": "mae"}], "defaults is no setting"),
    "a section for Hydra": ("hydra", {"callbacks": {"x": TOUCH}}, "hydra is no setting"),
    "a late node": ("model.optimizer", "${oc.create:{_target_:os.system}}", "not a plain value"),
    "a call that waits": ("model.optimizer._partial_", True, "_partial_"),
    "a list as a class": ("model._target_", ["os.system"], "not a plain value"),
    "a class that it trusts itself": ("model._target_", "mine.Objective", "trust="),
    "a key with a full stop": ("model", {"optimizer.x": TOUCH}, "builds pathlib"),
    "settings of another type": ("model", "os.system", "missing|must be"),
    "a name of the hub": ("backbone.name", "hf-hub:evil/model", "no such model"),
    "a folder as a name": ("backbone.name", "local-dir:/etc", "no such model"),
    "an unknown argument": ("backbone.checkpoint_path", "/etc/passwd", "unknown setting"),
    "arguments for timm": ("backbone.kwargs", {"pretrained": True}, "unknown setting"),
    "a billion pixels": ("backbone.img_size", 10**9, "≤ 65536"),
    "a million blocks": ("backbone.depth", 10**6, "≤ 1000"),
    "more blocks than tensors": ("backbone.depth", 999, "more than its"),
    "a huge width": ("backbone.embed_dim", 10**15, "no model|not those|cannot be built"),
    "a huge decoder": ("model.decoder_embed_dim", 2**40, "no model|not those|cannot be built"),
    "another width": ("backbone.embed_dim", 32, "not those of its settings"),
    "many channels": ("backbone.in_chans", 10**9, "≤ 10000"),
}


@pytest.mark.parametrize("reader", ["open a run", "open a bundle", "weights of a checkpoint", "export"])
@pytest.mark.parametrize("what", SPOILED)
def test_what_is_no_plain_setting_of_this_model_is_refused_when_it_is_opened(content, reader, what):
    name, value, said = SPOILED[what]
    content["vitmae_config"]["trust"] = ["mine.Objective"]
    put(content["vitmae_config"], name, value)
    if what in ("defaults", "a section for Hydra"):  # not looked at: only the model is built
        READERS[reader](content)
    else:
        refused(READERS[reader], content, said)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("reader", ["resume a run", "resume a checkpoint"])
@pytest.mark.parametrize("what", list(SPOILED)[:8])
def test_what_is_no_plain_setting_of_a_run_is_refused_when_it_is_resumed(content, reader, what):
    name, value, said = SPOILED[what]
    content["vitmae_config"]["trust"] = ["mine.Objective"]
    put(content["vitmae_config"], name, value)
    refused(READERS[reader], content, said)


@pytest.mark.parametrize("setting", ["backbone.embed_dim=4096", "model.decoder_embed_dim=65536", "backbone.depth=1000"])
def test_a_model_that_the_checkpoint_cannot_hold_is_not_built_when_it_is_resumed(content, setting, capsys):
    name, _, value = setting.partition("=")
    put(content["vitmae_config"], name, int(value))
    content["vitmae_config"]["logger"].pop("wandb")
    done = run_command(train.main, f"ckpt={save(content)}", capsys=capsys)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot hold" in done.err


def endless():
    lists = ["x"]
    for _ in range(12):
        lists = [lists] * 10
    return lists


def circle():
    ring = {}
    ring["again"] = ring
    return ring


@pytest.mark.parametrize(
    "value", [endless, circle, lambda: Namespace(_target_="os.system"), lambda: {1, 2}, lambda: b"x"]
)
def test_values_without_an_end_and_objects_in_settings_are_refused(content, value):
    run = save(content)
    content["vitmae_config"]["model"]["weights"] = value()
    torch.save(content, run / "checkpoints" / "last.ckpt")
    for read in (
        vitmae.load,
        lambda path: read_weights(str(path)),
        lambda path: find_resumption(str(path), Path(), []),
    ):
        with pytest.raises(UserError, match=r"is refused"):
            read(run / "checkpoints" / "last.ckpt" if read is not vitmae.load else run)
        (run / "config.yaml").unlink(missing_ok=True)  # else a run is resumed with the settings of this file


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\n"


@pytest.mark.parametrize(
    "yaml", ["model: !!python/object/apply:os.system ['touch canary']\n", LAUGHS, "model: !!binary aa\n"]
)
def test_tags_and_aliases_of_yaml_are_refused(content, yaml):
    run = save(content, yaml=yaml)
    (run / ".hydra").mkdir()
    (run / ".hydra" / "overrides.yaml").write_text(yaml)
    for read in (
        lambda: find_resumption(str(run), Path(), []),
        lambda: cost(job(run), Path()),
        lambda: read_sweep(Path()),
    ):
        with pytest.raises(UserError, match="is refused: line"):
            read()
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("yaml", ["", "[1, 2]", "{", "a" * 100, "\x00", "model: 3", "[" * 5000, "a: 1\na: 2"])
def test_a_damaged_config_is_one_line(content, yaml):
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        find_resumption(str(save(content, yaml=yaml)), Path(), [])
    assert "\n" not in str(error.value)


def test_the_table_of_a_sweep_resolves_nothing(content, monkeypatch):
    monkeypatch.setenv("SECRET", "42")
    (Path("0-x") / ".hydra").mkdir(parents=True)
    text = f"- seed=${{oc.env:SECRET}}\n- runs=${{claim:.,{CANARY}}}\n"
    (Path("0-x") / ".hydra" / "overrides.yaml").write_text(text)
    assert read_sweep(Path())[0]["seed"] == "${oc.env:SECRET}"
    assert not Path(CANARY).exists()


def test_a_text_is_not_taken_for_a_list_of_trusted_names(content):
    content["vitmae_config"]["model"]["_target_"] = "os.system"
    with pytest.raises(UserError, match=r"trust=my.os.system_like: must be a list"):
        vitmae.load(save(content), "cpu", trust="my.os.system_like")


# -- places that a file names ------------------------------------------------------------------------------------------


def test_a_checkpoint_alone_does_not_say_where_the_resumed_run_is_written(content):
    content["vitmae_config"]["runs"] = "/elsewhere"
    path = alone(save(content))
    assert find_resumption(str(path), Path("runs"), []).settings["runs"] == "runs"
    content["vitmae_config"]["name"] = "../../elsewhere"
    refused(READERS["resume a checkpoint"], content, "must be a name, not a path")


def test_the_account_of_an_upload_needs_the_users_word(content, monkeypatch):
    content["vitmae_config"]["logger"]["wandb"]["entity"] = "evil"
    refused(READERS["resume a run"], content, r"logger\.wandb\.entity=evil.*add logger\.wandb\.entity=evil")
    find_resumption(str(save(content)), Path(), ["logger.wandb.entity=evil"])
    monkeypatch.setenv("WANDB_ENTITY", "evil")
    find_resumption(str(save(content)), Path(), [])


@pytest.mark.parametrize("argument", ["profiler", "default_root_dir", "model_registry", "logger", "plugins"])
def test_arguments_of_the_trainer_that_act_elsewhere_need_the_users_word(content, argument):
    content["vitmae_config"]["trainer"][argument] = "evil/model"
    refused(READERS["resume a run"], content, rf"trainer\.{argument}=evil/model may write or upload")
    find_resumption(str(save(content)), Path(), [f"+trainer.{argument}=evil/model"])


def test_every_argument_of_the_trainer_that_a_choice_sets_may_be_in_a_file(content):
    for choice in ("ddp", "debug"):
        content["vitmae_config"]["trainer"] = compose([f"trainer={choice}"])["trainer"]
        find_resumption(str(save(content)), Path(), [])


@pytest.mark.parametrize("name", ["train.log", "commands.txt", "metrics.csv", "traceback.txt"])
def test_a_link_out_of_the_run_is_not_written_through(content, name):
    run = save(content)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(Path("profile").resolve())
    with pytest.raises(UserError, match=rf"{name} is a link to .*profile"):
        find_resumption(str(run), Path(), [])
    assert not Path("profile").exists()


@pytest.mark.parametrize("name", ["checkpoints/best.ckpt", "figures", "figures/reconstruction.png", "export"])
def test_a_link_at_any_depth_is_not_written_through(content, name):
    run = save(content)
    Path("victim").mkdir()
    link = run / name
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        link.rmdir()
    link.symlink_to(Path("victim").resolve())
    with pytest.raises(UserError, match=rf"{name} is a link to .*victim"):
        find_resumption(str(run), Path(), [])


def test_a_link_within_the_run_stays(content):
    run = save(content)
    (run / "wandb").mkdir()
    (run / "wandb" / "latest").symlink_to(run.resolve() / "checkpoints")
    find_resumption(str(run), Path(), [])


def test_the_name_of_a_folder_is_not_resolved(content):
    place = Path("${oc.env:HOME,x}")
    shutil.copytree(save(content), place)
    with pytest.raises(UserError, match="the path holds"):
        find_resumption(str(place), Path(), [])


def test_weights_that_only_a_file_names_are_not_loaded_when_a_run_starts_again(content):
    content["vitmae_config"]["backbone"]["weights"] = "somebody/something"
    run = save(content)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").write_text('{"id": "a", "name": "x", "state": "interrupted"}')
    with pytest.raises(UserError, match=r"backbone.weights=somebody/something would be read or downloaded again: add"):
        find_resumption(str(run), Path(), [])


def test_an_upload_needs_the_users_word(content):
    content["vitmae_config"]["logger"] = {"w": {"_target_": "vitmae.training.wandb_logger.Wandb", "mode": "online"}}
    with pytest.raises(UserError, match=r"logger.w.mode=online uploads what the run logs"):
        find_resumption(str(save(content)), Path(), [])


def test_a_process_that_nobody_of_the_run_has_started_follows_no_folder(content, monkeypatch):
    run = save(content)
    (run / ".start.yaml").write_text("data: {_target_: os.system, command: touch canary}")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="the environment says rank 1"):
        words_for_hydra([f"hydra.run.dir={run}"])


def test_a_file_downloads_no_images_into_a_folder_that_it_names(content):
    source = {"_target_": "vitmae.data.sources.cifar.CIFAR", "num_classes": 10, "download": True}
    content["vitmae_config"]["data"] |= {"source": source, "path": "home"}
    assert find_resumption(str(save(content)), Path(), []).settings["data"]["source"]["download"] is False
    data = of_run(read_saved(save(content)))
    assert data["source"]["download"] is False
    with pytest.raises(UserError, match=r"data\.path=home does not hold CIFAR-10"):
        build(data | {"in_chans": 3}).prepare()
    assert not Path("home").exists()
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hf-hub:evil/model"},
        {"architecture": "local-dir:elsewhere"},
        {"architecture": ["os.system"]},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"pretrained": True}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "elsewhere/model.bin"}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 10**9, "depth": 10**7}},
        {"architecture": "vit_tiny_patch16_224", "model_args": "x", "pretrained_cfg": {"license": 3}},
        {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": [1]},
    ],
)
def test_the_config_of_a_timm_folder_reads_and_downloads_nothing(content, config):
    folder = Path("timm")
    folder.mkdir()
    state = {name.removeprefix("backbone.vit."): tensor for name, tensor in content["state_dict"].items()}
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert read_weights(str(folder)).format.startswith("timm")
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    ("config", "index"),
    [
        ({"model_type": "vit", "auto_map": {"AutoModel": "evil.py"}}, {"weight_map": {"a": "../model.safetensors"}}),
        ({"model_type": "vit"}, {"weight_map": {"a": "/etc/passwd"}}),
        ({"model_type": "vit"}, {"weight_map": {"a": ["x"]}}),
        ({"model_type": "vit"}, {"weight_map": [1]}),
        ({"model_type": "vit"}, {"weight_map": {"a": ".."}}),
        ({"model_type": ["vit"]}, {}),
    ],
)
def test_a_hugging_face_folder_reads_no_file_outside_of_it(content, config, index):
    folder = Path("hf")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError):
        read_weights(str(folder))


# -- pickles -----------------------------------------------------------------------------------------------------------


def pickled(kind):
    path = Path(f"weights.{kind}")
    if kind == "npz":
        np.savez(path, a=np.array([Evil(CANARY)], dtype=object))
    elif kind == "pkl":
        path.write_bytes(pickle.dumps({"model": Evil(CANARY)}))
    else:
        torch.save(
            {"state_dict": {"x": Evil(CANARY)}, "vitmae_config": {}}, path, _use_new_zipfile_serialization=kind == "pth"
        )
    return path


@pytest.mark.parametrize("kind", ["pth", "legacy", "pkl", "npz"])
def test_no_path_unpickles_an_object(content, kind, capsys):
    evil = pickled(kind)
    folder = Path("folder")
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "pytorch_model.bin").write_bytes(evil.read_bytes())
    spoiled = bundle(content)
    (spoiled / "model.safetensors").write_bytes(evil.read_bytes())
    run = save(content)
    (run / "checkpoints" / "best.ckpt").write_bytes(evil.read_bytes())
    for source in (evil, folder, spoiled, run):
        with pytest.raises(UserError, match=r"refused|damaged"):  # torch reads a file of this name as safetensors
            read_weights(str(source))
    for source in (evil, spoiled, run):
        with pytest.raises(UserError, match=r"refused|damaged"):
            vitmae.load(source, "cpu")
    with pytest.raises(UserError, match="refused"):
        find_resumption(str(evil), Path(), [])
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "empty", "unreadable"])
def test_what_is_no_file_of_weights_is_one_line_and_nothing_waits(kind):
    path = Path("weights.pth")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch(mode=0o000 if kind == "unreadable" else 0o644)
    for read in (
        lambda: read_weights(str(path)),
        lambda: vitmae.load(path),
        lambda: find_resumption(str(path), Path(), []),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
