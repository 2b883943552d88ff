"""Which images an evaluation sees: the run's own, or another set, at the checkpoint's size and channels."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitmae.classes import check_classes
from vitmae.errors import UserError
from vitmae.weights.saved import Saved, find_saved, read_saved


@lru_cache(maxsize=1)
def _read(path: Path, trust: tuple[str, ...], written: int) -> Saved:
    return read_saved(path, trust)


def read_once(path: Path, trust: Sequence[str] = ()) -> Saved:
    """Read a checkpoint, unless it is the one that was read last and its file has not changed since.

    A command line needs the data settings in it before Hydra composes, and the evaluation all of it afterwards.

    Raises:
        UserError: see `vitmae.weights.saved.read_saved`.
    """
    found = find_saved(path)
    return _read(path, tuple(trust), found.stat().st_mtime_ns if found else 0)


def of_run(saved: Saved, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The `data` settings that a checkpoint was trained with.

    Its mean and deviation are given, so that nothing is measured: an encoder has its own anyway. The share that a
    centre crop keeps is left as the run had it, so that images are seen as in the run's own validation.

    Raises:
        UserError: it does not say, or it builds what a file may not (`vitmae.classes`).
    """
    if "data" not in saved.settings:
        raise UserError(f"{saved.path} does not say what it was trained on: give data=<choice>")
    check_classes({"data": saved.settings["data"]}, saved.path, trust)
    mean, std = (saved.state[name].flatten().tolist() for name in ("mean", "std"))
    return {
        **saved.settings["data"],
        "img_size": list(saved.img_size),
        "in_chans": saved.settings["backbone"]["in_chans"],
        "crop_pct": saved.settings["data"].get("crop_pct"),
        "stats": {"mean": mean, "std": std},
        "drop_last": False,  # a probe that is trained on augmented images trains on all of them
    }


def seen_as(data: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` settings of another set, with the size, channels and statistics that a checkpoint was trained with.

    Args:
        data: of the other set.
        trained: see `of_run`.
    """
    same = {name: trained[name] for name in ("img_size", "in_chans", "crop_pct", "stats", "drop_last")}
    return {**data, **same}
