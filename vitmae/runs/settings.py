"""The settings of a run that belong to none of its parts: the lines of conf/config.yaml itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le


@dataclass(frozen=True)
class RunSettings:
    """What a run is given, its types and its limits.

    Attributes:
        model: the objective; this node and the next seven are checked against what they build.
        backbone: the encoder.
        data: the images.
        trainer: Lightning's.
        logger: by name, where metrics go.
        probe: of `vitmae.training.online`.
        panel: of `vitmae.training.online`.
        checkpoint: of `vitmae.training.checkpoints.Checkpoints`.
        choices: the file of each config group, filled in.
        name: of the run's directory.
        runs: the folder of all runs.
        seed: of the initial weights; of the data's order and of all draws, if `data.seed` is not another.
        ckpt: the checkpoint to resume from.
        weights_min_match: share of the encoder that `backbone.weights` or `model.weights` must fill.
        compile: `torch.compile` the transformer blocks.
        trust: classes that a checkpoint may name besides this project's.
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
