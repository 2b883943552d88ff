"""The top-level settings of a run: the lines of conf/config.yaml, and the same read back from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from vitmae.classes import check_classes
from vitmae.errors import UserError
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
    name: str | int | float
    runs: str
    seed: Annotated[int, Ge(0)]
    ckpt: str | None
    weights_min_match: Annotated[float, Ge(0), Le(1)]
    compile: bool
    trust: Sequence[str]


def require_all(settings: Mapping[str, Any]) -> None:
    """Refuse settings in which a whole line of conf/config.yaml is missing.

    Raises:
        UserError: names the first that is missing, or that is null and must be a group.
    """
    for name in _NAMES:
        is_group = RunSettings.__annotations__[name] == Mapping[str, Any]
        if name not in settings or (is_group and not isinstance(settings[name], Mapping)):
            raise UserError(f"{name} must be given: leave out ~{name} and {name}=null")


def saved_settings(settings: Any, file: Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file, if they are nothing but settings of a run.

    A key that is no setting would be an instruction: Hydra, which composes them with a command line, obeys `defaults`.

    Args:
        settings: plain values.
        file: where they were read, for the message.
        trust: classes that they may build, besides those of `vitmae.classes`.

    Returns:
        A copy, with classes under their present names and an empty `trust`, which a file cannot decide.

    Raises:
        UserError: they are no mapping, have another key, or build a class that they may not build.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"{file} is damaged: its settings are missing; get it again")
    if unknown := sorted(str(key) for key in settings if key not in _NAMES):
        raise UserError(f"{file}: {unknown[0]} is no setting of a run: refused; get the file from its source again")
    named: dict[str, Any] = {**present_names(settings), "trust": []}
    check_classes(named, file, trust)
    return named


_NAMES = tuple(field.name for field in fields(RunSettings))
