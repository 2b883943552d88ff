"""What is evaluated: whether checkpoint, images and probes fit each other, before time is spent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vitmae.data.datamodule import ImageData
from vitmae.errors import UserError
from vitmae.evaluation.encoder import Split
from vitmae.evaluation.names import Probe
from vitmae.weights import own

_WITHOUT_LABELS = ("collapse", "dense")


def read_saved(path: Path, data: ImageData) -> own.Saved:
    """Read a checkpoint and compare it with the images that it is to see.

    Raises:
        UserError: it is none of this project, or it sees another number of channels.
    """
    saved = own.read(path)
    channels = saved.settings["backbone"]["in_chans"]
    if data.in_chans != channels:
        raise UserError(f"data.in_chans={data.in_chans}, but {path} sees images of {channels} channels: "
                        "leave data.in_chans out, and images are converted")
    return saved


def choose_split(data: ImageData, split: Literal["val", "test"] | None) -> Split:
    """The split that is scored: as asked, else test where there is one.

    Raises:
        UserError: there is no test split.
    """
    if split == "test" and not data.num_test:
        raise UserError("split=test: this set has no test split: leave split out, and validation images are scored")
    return split or ("test" if data.num_test else "val")


def choose_probes(
    probe: Literal["all"] | Probe | Sequence[Probe], data: ImageData, saved: own.Saved, *, most_logistic: int
) -> list[Probe]:
    """The probes to run, each once.

    Args:
        probe: one, several, or ``all`` that fit.
        data: prepared.
        saved: the checkpoint.
        most_logistic: of more training images ``all`` leaves logistic regression out.

    Raises:
        UserError: one of them needs labels or masks that the images lack.
    """
    if probe == "all":
        labelled: list[Probe] = ["knn", "linear", "logistic", "fewshot", "attentive"]
        if data.num_train > most_logistic:
            labelled.remove("logistic")
        if saved.objective == "Supervised" and saved.is_full:
            labelled.append("classifier")
        dense: list[Probe] = ["dense"] if data.num_mask_classes is not None else []
        return [*(labelled if data.num_classes is not None else []), *dense, "collapse"]
    names: list[Probe] = list(dict.fromkeys([probe] if isinstance(probe, str) else probe))  # type: ignore[list-item]
    for name in names:
        if data.num_classes is None and name not in _WITHOUT_LABELS:
            raise UserError(f"probe={name} needs labels, and these images have none: use class folders, or "
                            "probe=collapse")
    if "dense" in names and data.num_mask_classes is None:
        raise UserError("probe=dense needs the class of every pixel: use data=shapes, or data=folder with "
                        "data.source.masks=FOLDER data.source.num_mask_classes=K")
    return names
