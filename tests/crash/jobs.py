"""The commands that are killed: how each starts, how it is started again, and what it must have made at the end."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.identity import TIMES

_MODEL = ["backbone=vit_pico", "backbone.embed_dim=16", "backbone.depth=2", "backbone.num_heads=2", "trainer=cpu"]
_TRAIN = [
    *_MODEL,
    "trainer.precision=32-true",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "checkpoint.every_n_steps=2",
    "probe.every_n_epochs=2",
    "probe.images=200",
    "panel.every_n_epochs=2",
    "panel.images=2",
    "logger=csv",
]
_AVERAGED = ["model.optimizer.ema_decay=0.9", "trainer.accumulate_grad_batches=2"]
_TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=32"]


@dataclass(frozen=True)
class Job:
    """A command that is killed and started again until it ends by itself.

    Attributes:
        name: for the table.
        words: folder of the job -> the arguments of Python, for the next start.
        result: folder of the job -> what must equal that of the uninterrupted job, by name.
        is_run: whether it is a single run of `vitmae.train`.
        has_ranks: whether it trains in several processes, one of which may be killed alone.
    """

    name: str
    words: Callable[[Path], list[str]]
    result: Callable[[Path], Mapping[str, Any]]
    is_run: bool = False
    has_ranks: bool = False


def jobs(inputs: Path) -> list[Job]:
    """All jobs.

    Args:
        inputs: a folder with what they read, made by `make_inputs`.
    """
    run, photos = f"ckpt={inputs / 'run'}", inputs / "photos"
    comparison = ["methods=[scratch,mae]", "seeds=[0]", "probes=[knn]", "scratch=[]", "finetune=[model.pool=avg]"]
    return [
        _training("mae", "model=mae", *_AVERAGED, "trainer.val_check_interval=0.5"),
        _training("masked patch, W&B", "model=masked_patch", *_AVERAGED, "logger=wandb"),
        _training("vit", "model=vit", "trainer.val_check_interval=0.5", "trainer.log_every_n_steps=7"),
        _training("mae, two processes", "model=mae", *_AVERAGED, *_TWO, has_ranks=True),
        Job("embed", _command("embed", run, f"images={photos}", "batch_size=16", out="out.parquet"), _table),
        Job("prepare", _command("prepare", f"src={photos}", "short_side=32", dst="copy"), _files),
        Job("evaluate", _command("evaluate", run, "probe=[knn,linear]", features="features", out="out.json"), _scores),
        Job("compare", _command("compare", *comparison, *_TRAIN, "trainer.max_epochs=1", out="comparison"), _report),
        Job("sweep", _command("train", "-m", *_TRAIN, "model.mask_ratio=0.5,0.75", runs="runs"), _sweep),
    ]


def make_inputs(folder: Path) -> list[str]:
    """Make the photographs that the jobs read; return the command that trains the model that they read."""
    generator = torch.Generator().manual_seed(0)
    for number in range(300):
        path = folder / "photos" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (48, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return ["-m", "vitmae.train", *_TRAIN, "trainer.max_epochs=1", f"hydra.run.dir={folder / 'run'}"]


def _command(name: str, *settings: str, **places: str) -> Callable[[Path], list[str]]:
    """A command that is started again by the same words; its places lie in the folder of the job."""

    def words(folder: Path) -> list[str]:
        return ["-m", f"vitmae.{name}", *settings, *(f"{key}={folder / place}" for key, place in places.items())]

    return words


def _training(name: str, *settings: str, has_ranks: bool = False) -> Job:
    """A run; once its settings are saved, `ckpt=` starts it again."""

    def words(folder: Path) -> list[str]:
        begun = sorted(folder.glob("runs/2*/*/config.yaml"))
        if begun:
            return ["-m", "vitmae.train", f"ckpt={begun[-1].parent}"]
        return ["-m", "vitmae.train", *_TRAIN, *settings, f"runs={folder / 'runs'}"]

    return Job(name, words, lambda folder: _run(max(folder.glob("runs/2*/*/config.yaml")).parent), True, has_ranks)


def _run(run: Path) -> dict[str, Any]:
    """Everything in a run that does not depend on the time of day."""
    summary = json.loads((run / "summary.json").read_text())
    with (run / "metrics.csv").open() as table:
        rows = [{name: value for name, value in row.items() if name != TIMES} for row in csv.DictReader(table)]
    steps = [int(row["step"]) for row in rows]
    return {
        "state": summary["state"],
        "metrics": rows,
        "steps": steps if steps == sorted(set(steps)) else f"not ascending: {run}",
        "last.ckpt": _fingerprint(run / "checkpoints" / "last.ckpt"),
        "best.ckpt": _fingerprint(run / "checkpoints" / "best.ckpt"),
        "figures": sorted(path.name for path in run.glob("figures/*")),
        "unfinished files": [str(path) for path in run.rglob("*.tmp*")],
    }


def _fingerprint(checkpoint: Path) -> str:
    """A hash of every tensor and number of the training in a checkpoint."""
    content = torch.load(checkpoint, weights_only=True)
    total = hashlib.sha256()
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    for name, value in _leaves({key: content[key] for key in kept if key in content}):
        total.update(name.encode())
        if isinstance(value, torch.Tensor):
            total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _leaves(value, f"{name}.{number}")
    else:
        yield name, node


def _table(folder: Path) -> dict[str, Any]:
    table = pq.read_table(folder / "out.parquet")
    return {"rows": table.to_pydict(), "files": sorted(path.name for path in folder.iterdir() if path.suffix != ".log")}


def _files(folder: Path) -> dict[str, Any]:
    copies = sorted(path for path in (folder / "copy").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in copies}


def _scores(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "out.json").read_text())
    return {"scores": _without_times(found), "features": sorted(path.name for path in (folder / "features").rglob("*"))}


def _without_times(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_times(value) for key, value in node.items() if not _is_time(key)}
    return [_without_times(value) for value in node] if isinstance(node, list) else node


def _is_time(name: str) -> bool:
    return any(word in name for word in ("second", "minute", "created", "time", "environment", "command"))


def _report(folder: Path) -> dict[str, Any]:
    with (folder / "comparison" / "report.csv").open() as table:
        rows = [_without_times(row) for row in csv.DictReader(table)]
    runs = {
        path.parent.name: _run(path.parent)
        for path in sorted(folder.glob("comparison/runs/*/config.yaml"))
        if ".stopped" not in path.parent.name  # set aside, because it had no checkpoint yet
    }
    return {"rows": rows, "runs": runs}


def _sweep(folder: Path) -> dict[str, Any]:
    table = max(folder.glob("runs/2*/*-sweep/sweep.csv"))  # one that was killed when it had finished is whole already
    runs = {path.parent.name: _run(path.parent) for path in sorted(table.parent.glob("*/config.yaml"))}
    return {"table": table.read_text(), "runs": runs}
