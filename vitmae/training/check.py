"""Check runs before the first of them starts: all that `vitmae.train` builds is built here, without weights.

A sweep and a comparison train for days. What their last job would refuse is refused before the first one starts. Images
are opened once for all runs that share them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitmae.config import build
from vitmae.data.datamodule import ImageData
from vitmae.data.splits import Paths, Source, Splits
from vitmae.models.objective import Objective, with_classes
from vitmae.runs.directory import RunDirectory
from vitmae.training.accounting import refuse_idle
from vitmae.training.fit import make_trainer
from vitmae.training.settings import check_run
from vitmae.weights.load import load_weights

_NOWHERE = RunDirectory(Path(os.devnull), is_writer=False)


@dataclass(frozen=True)
class CheckedRun:
    """What a run would build.

    Attributes:
        settings: as the run would save them.
        data: prepared.
        objective: on torch's meta device, which holds no values.
    """

    settings: dict[str, Any]
    data: ImageData
    objective: Objective


class RunChecks:
    """The checks of several runs.

    Args:
        made_later: folders of runs that do not exist yet, whose weights later runs load.
    """

    def __init__(self, made_later: Sequence[Path] = ()) -> None:
        self._made_later = set(map(str, made_later))
        self._sources: dict[str, _OpenedOnce] = {}
        self._prepared: dict[str, ImageData] = {}
        self._loaded: set[str] = set()

    def check(self, settings: dict[str, Any], overrides: Sequence[str]) -> CheckedRun:
        """Build all parts of a run, as `vitmae.train` does.

        Args:
            settings: of the run, as plain values; ``auto`` is replaced as in a run.
            overrides: the words of the command line that gave them.

        Raises:
            UserError: the run would end with this error before its first step.
        """
        groups = [name for name, node in settings.items() if isinstance(node, Mapping)]
        settings = {"name": "planned", "choices": dict.fromkeys(groups), **settings}
        check_run(settings)
        data = self.data(settings["data"])
        model = with_classes(settings["model"], data.num_classes)
        with torch.device("meta"):
            backbone = build(settings["backbone"])
            objective = build(model, backbone=backbone, mean=data.mean, std=data.std)
        self._check_weights(objective, settings)
        parts = {
            "data": data,
            "backbone": backbone,
            "model": objective,
            "logger": {name: build(logger, run=_NOWHERE) for name, logger in settings["logger"].items()},
            "probe": build(settings["probe"]),
            "panel": build(settings["panel"], folder=_NOWHERE.figures, log=None),
        }
        refuse_idle(settings, overrides, {}, parts)
        trainer = make_trainer(build(settings["trainer"] | {"_partial_": True}), logger=False)
        data.check_batch(trainer.world_size)
        _check_warmup(settings, data, objective, trainer.world_size)
        return CheckedRun(settings, data, objective)

    def data(self, node: Mapping[str, Any]) -> ImageData:
        """The prepared images of `data` settings; those that differ in the seed alone have the same numbers of images.

        Raises:
            UserError: see `ImageData.prepare`.
        """
        key = json.dumps({**node, "seed": None}, sort_keys=True, default=str)
        if key not in self._prepared:
            source = json.dumps(node["source"], sort_keys=True, default=str)
            if source not in self._sources:
                self._sources[source] = _OpenedOnce(build(node["source"]))
            data: ImageData = build({**node, "source": self._sources[source]})
            data.prepare()
            self._prepared[key] = data
        return self._prepared[key]

    def _check_weights(self, objective: Objective, settings: Mapping[str, Any]) -> None:
        for part, module in (("model", objective), ("backbone", objective.backbone)):
            source = settings[part].get("weights")
            key = json.dumps([settings[part], settings["weights_min_match"]], sort_keys=True, default=str)
            if source is not None and source not in self._made_later and key not in self._loaded:
                load_weights(module, source, min_match=settings["weights_min_match"], trust=settings["trust"])
                self._loaded.add(key)


class _OpenedOnce:
    """A source that opens its images once for several runs."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._opened: dict[str, Splits] = {}

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """See `vitmae.data.splits.Source`."""
        key = str((path, img_size, in_chans))
        if key not in self._opened:
            self._opened[key] = self.source.load(path, img_size, in_chans)
        return self._opened[key]


def _check_warmup(settings: Mapping[str, Any], data: ImageData, objective: Objective, world_size: int) -> None:
    """Refuse a warm-up that is not shorter than the run, where the settings alone give the length of the run."""
    trainer = settings["trainer"]
    if trainer.get("fast_dev_run") or trainer.get("overfit_batches") or trainer.get("limit_train_batches", 1.0) != 1.0:
        return
    images = data.batch_size * world_size
    batches = data.num_train // images if data.drop_last else -(-data.num_train // images)
    steps_per_epoch = max(1, -(-batches // trainer.get("accumulate_grad_batches", 1)))
    epochs, steps = trainer.get("max_epochs") or -1, trainer.get("max_steps") or -1
    lengths = [length for length in (epochs * steps_per_epoch, steps) if length > 0]
    if lengths:
        objective.optimizer.warmup_steps(min(lengths), steps_per_epoch)
