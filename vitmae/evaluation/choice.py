"""What is evaluated: whether checkpoint, images and probes fit each other, before time is spent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vitmae.data.datamodule import ImageData
from vitmae.errors import UserError
from vitmae.evaluation.feature_store import Split
from vitmae.evaluation.probe_names import Probe
from vitmae.weights.saved import Saved, read_saved

_WITHOUT_LABELS = ("collapse", "dense")


def read_for(data: ImageData, path: Path, trust: Sequence[str] = ()) -> Saved:
    """Read a checkpoint and compare it with the images that it is to see.

    Raises:
        UserError: it is none of this project, or it sees another number of channels.
    """
    saved = read_saved(path, trust)
    channels = saved.settings["backbone"]["in_chans"]
    if data.in_chans != channels:
        raise UserError(
            f"data.in_chans={data.in_chans}, but {path} sees images of {channels} channels: "
            "leave data.in_chans out, and images are converted"
        )
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
    probe: Literal["all"] | Probe | Sequence[Probe],
    data: ImageData,
    saved: Saved,
    *,
    most_logistic: int,
    encoder: Literal["trained", "untrained", "both"] = "trained",
) -> list[Probe]:
    """The probes to run, each once.

    Args:
        probe: one, several, or ``all`` that fit.
        data: prepared.
        saved: the checkpoint.
        most_logistic: of more training images ``all`` leaves logistic regression out.
        encoder: whose features; fresh weights have no classifier.

    Raises:
        UserError: there are none, or one of them needs labels, masks or a trained head that is not there.
    """
    if probe == "all":
        labelled: list[Probe] = ["knn", "linear", "logistic", "fewshot", "attentive"]
        if data.num_train > most_logistic:
            labelled.remove("logistic")
        if saved.objective == "Supervised" and saved.is_full and encoder != "untrained":
            labelled.append("classifier")
        dense: list[Probe] = ["dense"] if data.num_mask_classes is not None else []
        return [*(labelled if data.num_classes is not None else []), *dense, "collapse"]
    names: list[Probe] = list(dict.fromkeys([probe] if isinstance(probe, str) else probe))  # type: ignore[list-item]
    if not names:
        raise UserError("probe=[]: at least one is wanted, or all")
    if "classifier" in names and encoder == "untrained":
        raise UserError("probe=classifier with encoder=untrained: fresh weights have no classifier: leave one out")
    for name in names:
        if data.num_classes is None and name not in _WITHOUT_LABELS:
            raise UserError(
                f"probe={name} needs labels, and these images have none: use class folders, or probe=collapse"
            )
    if "dense" in names and data.num_mask_classes is None:
        raise UserError(
            "probe=dense needs the class of every pixel: use data=shapes, or data=folder with "
            "data.source.masks=FOLDER data.source.num_mask_classes=K"
        )
    return names


def require_same_classes(saved: Saved, objective: Any, data: ImageData) -> None:
    """Refuse a checkpoint without a trained classifier, or whose classes are not those of the data, in this order.

    Args:
        saved: the checkpoint.
        objective: built from it.
        data: prepared.

    Raises:
        UserError: see above.
    """
    if saved.objective != "Supervised" or not saved.is_full:
        raise UserError("probe=classifier: the checkpoint has no classifier: fine-tune it with model=vit")
    theirs, ours = saved.facts.get("class_names"), data.class_names
    if theirs is None and objective.num_classes == data.num_classes:  # it does not say, and may know no better
        return
    if theirs is None or ours is None or list(theirs) != list(ours):
        count, names = (objective.num_classes, "") if theirs is None else (len(theirs), f" ({_first(theirs)})")
        raise UserError(
            f"probe=classifier: the checkpoint knows {count} classes{names}, and the data has "
            f"{data.num_classes} ({_first(ours or ())}): evaluate it on the classes it was trained for"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
