"""The top-level settings of a run: the lines of conf/config.yaml, and the same read back from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from vitmae.classes import check_classes, check_plain
from vitmae.errors import UserError
from vitmae.limits import Seed, Text, check_value
from vitmae.runs.checkpoint_file import present_names


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run, with their types and limits.

    Attributes:
        model: the objective; this node and the next seven are checked by the class that they build.
        backbone: the encoder.
        data: the images.
        trainer: Lightning's.
        logger: the loggers by name.
        probe: of `vitmae.training.online.OnlineProbe`.
        panel: of `vitmae.training.online.Panels`.
        checkpoint: of `vitmae.training.checkpoints.Checkpoints`.
        choices: the file of each config group; filled in when a run starts.
        name: of the run's directory.
        runs: the folder of all runs.
        seed: of the initial weights; also of the order of the images and of all draws, unless `data.seed` is given.
        ckpt: the checkpoint to resume from.
        weights_min_match: share of the encoder that `backbone.weights` or `model.weights` must fill.
        compile: `torch.compile` the transformer blocks.
        on_nonfinite: what a loss or gradient that is not finite does, see `vitmae.training.safety`.
        trust: classes that a checkpoint may build, besides those of this project.
    """

    model: Mapping[str, Any]
    backbone: Mapping[str, Any]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    logger: Mapping[str, Any]
    probe: Mapping[str, Any]
    panel: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    choices: Mapping[str, Any]
    name: Text | int | float
    runs: Text
    seed: Seed
    ckpt: Text | None
    weights_min_match: Annotated[float, Ge(0), Le(1)]
    compile: bool
    on_nonfinite: Literal["stop", "skip", "rollback"]
    trust: Sequence[Text]


def require_all(settings: Mapping[str, Any]) -> None:
    """Refuse settings in which a whole line of conf/config.yaml is missing.

    Raises:
        UserError: names the first that is missing, or that is null and must be a group.
    """
    for name in _NAMES:
        is_group = RunSettings.__annotations__[name] == Mapping[str, Any]
        if name not in settings or (is_group and settings[name] is None):
            raise UserError(f"{name} must be given: leave out ~{name} and {name}=null")
        if is_group and not isinstance(settings[name], Mapping):
            raise UserError(f"{name}={settings[name]}: must be a mapping: set its settings, {name}.<name>=<value>")


def check_types(settings: Mapping[str, Any]) -> None:
    """Compare the top-level settings that are given with their types and limits.

    Raises:
        UserError: one has another type.
    """
    for name, annotation in RunSettings.__annotations__.items():
        if name in settings:
            check_value(name, settings[name], annotation)


def saved_settings(settings: Any, file: Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file, if they are nothing but settings of a run.

    A key that is no setting would be an instruction: Hydra, which composes them with a command line, obeys `defaults`.

    Args:
        settings: plain values.
        file: where they were read, for the message.
        trust: classes that they may build, besides those of `vitmae.classes`.

    Returns:
        A copy, with classes under their present names, and without what a file cannot decide: `trust`, and whether
        data are downloaded.

    Raises:
        UserError: they are no mapping, have another key, a name that is a path, or build a class that they may not
            build.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"{file} is damaged: its settings are missing; get it again")
    if unknown := sorted(str(key) for key in settings if key not in _NAMES):
        raise UserError(f"{file}: {unknown[0]} is no setting of a run: refused; get the file from its source again")
    check_plain(settings, file)
    named: dict[str, Any] = {**_LATER, **present_names(settings), "trust": []}
    check_classes(named, file, trust)
    try:
        check_types(settings)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if "/" in str(settings.get("name")) or str(settings.get("name")) == "..":  # it becomes the name of a folder
        raise UserError(f"{file} is refused: name={settings['name']} must be a name, not a path; add name=NAME")
    if isinstance(data := named.get("data"), Mapping):
        named["data"] = without_download(data)
    return named


_LATER = {"on_nonfinite": "stop"}
"""Settings that runs of earlier versions have not saved, and what those runs did."""


def without_download(data: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` settings of a file, with a source that downloads nothing: it would write to a folder of the file's."""
    source = data.get("source")
    if isinstance(source, Mapping) and source.get("_target_") == _DOWNLOADS:
        source = {**source, "download": False}
    return {**data, "source": source}


_DOWNLOADS = "vitmae.data.sources.cifar.CIFAR"
_NAMES = tuple(field.name for field in fields(RunSettings))
