"""The top-level settings of a run: the lines of conf/config.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le


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
