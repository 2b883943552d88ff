"""The `data` settings of an evaluation: those of the run, or of another set at the checkpoint's size and channels."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitmae.classes import check_classes
from vitmae.errors import UserError
from vitmae.runs.settings import without_download
from vitmae.weights.saved import Saved, find_saved, read_saved


@lru_cache(maxsize=1)
def _read(path: Path, trust: tuple[str, ...], written: int) -> Saved:
    return read_saved(path, trust)


def read_once(path: Path, trust: Sequence[str] = ()) -> Saved:
    """Read a checkpoint, or return the last one again if its path is the same and its file has not changed.

    `vitmae.evaluate` needs its data settings before Hydra composes, and its weights afterwards.

    Raises:
        UserError: see `vitmae.weights.saved.read_saved`.
    """
    found = find_saved(path)
    return _read(path, tuple(trust), found.stat().st_mtime_ns if found else 0)


def of_run(saved: Saved, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The `data` settings that a checkpoint was trained with.

    Mean and standard deviation are filled in, so that nothing is measured; the encoder normalises with its own. The
    centre crop stays that of the run, so that images are the same as in the run's validation.

    Raises:
        UserError: the checkpoint has no such settings, or they build a class that is not allowed (`vitmae.classes`).
    """
    if "data" not in saved.settings:
        raise UserError(f"{saved.path} does not say what it was trained on: give data=<choice>")
    check_classes({"data": saved.settings["data"]}, saved.path, trust)
    mean, std = (saved.state[name].flatten().tolist() for name in ("mean", "std"))
    return {
        **without_download(saved.settings["data"]),
        "img_size": list(saved.img_size),
        "in_chans": saved.settings["backbone"]["in_chans"],
        "crop_pct": saved.settings["data"].get("crop_pct"),
        "stats": {"mean": mean, "std": std},
        "drop_last": False,  # a probe that trains on augmented images uses all of them
    }


def seen_as(data: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` settings of another set, with the image size, channels and statistics of a checkpoint's training.

    Args:
        data: the settings of the other set.
        trained: the settings of the training, see `of_run`.
    """
    same = {name: trained[name] for name in ("img_size", "in_chans", "crop_pct", "stats", "drop_last")}
    return {**data, **same}
