"""The choice of split and probes, and the check that checkpoint, images and probes fit each other."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from vitmae.data.datamodule import ImageData
from vitmae.errors import UserError
from vitmae.evaluation.feature_store import Split
from vitmae.evaluation.probe_name import ProbeName
from vitmae.models.protocols import Classifies, declared, declares
from vitmae.trained.model import Model
from vitmae.weights.saved import Saved

_WITHOUT_LABELS = ("collapse", "dense")


def require_same_channels(saved: Saved, data: ImageData) -> None:
    """Refuse images with another number of channels than the checkpoint was trained on.

    Raises:
        UserError: the numbers differ.
    """
    channels = saved.settings["backbone"]["in_chans"]
    if data.in_chans != channels:
        raise UserError(
            f"data.in_chans={data.in_chans}, but {saved.path} was trained on {channels} channels: "
            "leave data.in_chans out to convert the images"
        )


def choose_split(data: ImageData, split: Literal["val", "test"] | None) -> Split:
    """The split that is scored: `split`, or test, or val if the set has no test split.

    Raises:
        UserError: `split` is test, and the set has no test split.
    """
    if split == "test" and not data.num_test:
        raise UserError("split=test: this set has no test split: leave split out to score validation images")
    return split or ("test" if data.num_test else "val")


def choose_probes(
    probe: Literal["all"] | ProbeName | Sequence[ProbeName],
    data: ImageData,
    saved: Saved,
    *,
    most_logistic: int,
    encoder: Literal["trained", "untrained", "both"] = "trained",
) -> list[ProbeName]:
    """The probes to run, each once.

    Args:
        probe: one, several, or ``all`` that fit.
        data: the images, prepared.
        saved: the checkpoint.
        most_logistic: ``all`` leaves logistic regression out if the set has more training images.
        encoder: the encoder that is evaluated; fresh weights have no classifier.

    Raises:
        UserError: `probe` is empty, or a probe needs labels, masks or a trained head, which are missing.
    """
    if probe == "all":
        labelled: list[ProbeName] = ["knn", "linear", "logistic", "fewshot", "attentive"]
        if data.num_train > most_logistic:
            labelled.remove("logistic")
        if declares(saved.objective_class, Classifies) and saved.is_full and encoder != "untrained":
            labelled.append("classifier")
        dense: list[ProbeName] = ["dense"] if data.num_mask_classes is not None else []
        return [*(labelled if data.num_classes is not None else []), *dense, "collapse"]
    names: list[ProbeName] = list(dict.fromkeys([probe] if isinstance(probe, str) else probe))  # type: ignore[list-item]
    if not names:
        raise UserError("probe=[]: name at least one probe, or all")
    if "classifier" in names and encoder == "untrained":
        raise UserError("probe=classifier with encoder=untrained: untrained weights have no classifier: leave one out")
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


def require_no_idle_settings(names: Sequence[str], probes: Mapping[str, Any], probe: str | Sequence[str]) -> None:
    """Refuse a setting of a probe that does not run: it would have no effect.

    Args:
        names: the probes that run.
        probes: all of them by name; their settings are the fields of a dataclass.
        probe: the setting that chose them; with ``all``, logistic.max_images takes part in the choice.

    Raises:
        UserError: names the first setting that has another value than its default.
    """
    for name, idle in probes.items():
        if name in names or not is_dataclass(idle):
            continue
        make: Any = type(idle)
        default = make()
        for field in fields(idle):
            value, usual = (_plain(getattr(one, field.name)) for one in (idle, default))
            if value != usual and (probe, field.name) != ("all", "max_images"):
                raise UserError(
                    f"{name}.{field.name}={value} has no effect: {name} is not among the probes that run "
                    f"({', '.join(names)}): add it to probe=, or leave this out"
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def require_same_classes(model: Model, data: ImageData) -> Classifies:
    """The model's objective as a classifier, if it knows the data's classes in the same order.

    Args:
        model: the model that is evaluated.
        data: the images, prepared.

    Raises:
        UserError: the model has no trained classifier, or has other classes, or in another order.
    """
    classifier = declared(model.objective, Classifies)
    if classifier is None or not model.saved.is_full:
        raise UserError("probe=classifier: the checkpoint has no classifier: fine-tune it with model=vit")
    theirs, ours = model.class_names, data.class_names
    if theirs is None and classifier.num_classes == data.num_classes:  # an old checkpoint has no names
        return classifier
    if theirs is None or ours is None or list(theirs) != list(ours):
        count, names = (classifier.num_classes, "") if theirs is None else (len(theirs), f" ({_first(theirs)})")
        raise UserError(
            f"probe=classifier: the checkpoint knows {count} classes{names}, and the data has "
            f"{data.num_classes} ({_first(ours or ())}): evaluate it on the classes it was trained for"
        )
    return classifier


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
