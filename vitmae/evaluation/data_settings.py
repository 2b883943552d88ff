"""Which images an evaluation sees: the run's own, or another set, at the checkpoint's size and channels."""

from collections.abc import Mapping, Sequence
from typing import Any

from vitmae.classes import check_classes
from vitmae.errors import UserError
from vitmae.tokens.patches import pair
from vitmae.trained.model import find_model
from vitmae.weights.saved import read_saved


def of_run(ckpt: str, runs: str, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The `data` settings that a checkpoint was trained with.

    Its mean and deviation are given, so that nothing is measured: an encoder has its own anyway. The share that a
    centre crop keeps is left as the run had it, so that images are seen as in the run's own validation.

    Raises:
        UserError: there is no such checkpoint, it does not say, or it builds what a file may not (`vitmae.classes`).
    """
    saved = read_saved(find_model(ckpt, runs), trust)
    if "data" not in saved.settings:
        raise UserError(f"{saved.path} does not say what it was trained on: give data=<choice>")
    check_classes({"data": saved.settings["data"]}, saved.path, trust)
    mean, std = (saved.state[name].flatten().tolist() for name in ("mean", "std"))
    return {
        **saved.settings["data"],
        "img_size": list(pair(saved.settings["backbone"]["img_size"])),
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
