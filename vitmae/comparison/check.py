"""Check every job of a comparison before the first one starts, as `vitmae.train` and `vitmae.evaluate` would."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitmae.comparison.plan import Job, Row
from vitmae.config import build, check_settings
from vitmae.data.datamodule import ImageData
from vitmae.errors import UserError
from vitmae.evaluation.choice import choose_probes, choose_split, require_same_channels
from vitmae.evaluation.probe_data import VAL_SHARE_OF_TRAIN
from vitmae.models.protocols import Classifies, declares
from vitmae.probes.features import stratified_split
from vitmae.training.check import RunChecks
from vitmae.weights.saved import Saved


@dataclass(frozen=True)
class PlannedRun:
    """A training run that has not started.

    Attributes:
        saved: what it will save, without its weights.
        width: of its encoder.
        size: of its checkpoint in bytes, at least.
    """

    saved: Saved
    width: int
    size: int


class JobChecks:
    """The checks of a comparison's jobs.

    Args:
        rows: with one seed; jobs of other seeds differ in the seed alone.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._runs = RunChecks(made_later=[row.pretrain.place for row in rows if row.pretrain])

    def training(self, job: Job, settings: dict[str, Any]) -> PlannedRun:
        """Build all that a training run builds.

        Args:
            job: the run.
            settings: that its overrides stand for.

        Raises:
            UserError: the run would end with this error before its first step.
        """
        run = self._runs.check(settings, job.overrides)
        state = {"mean": torch.tensor(run.data.mean), "std": torch.tensor(run.data.std)}
        facts = {"class_names": run.data.class_names, "crop_pct": run.data.val_crop_pct}
        count = sum(parameter.numel() for parameter in run.objective.parameters())
        trained = sum(parameter.numel() for parameter in run.objective.parameters() if parameter.requires_grad)
        moments = 2 if "adam" in settings["model"]["optimizer"]["name"] else 0
        saved = Saved(job.place, state, run.settings, facts)
        return PlannedRun(saved, run.objective.backbone.embed_dim, 4 * (count + moments * trained))

    def evaluation(self, of: PlannedRun, settings: dict[str, Any]) -> None:
        """Open the images of an evaluation, and ask each of its probes whether they are enough.

        Args:
            of: the run that is evaluated.
            settings: of `vitmae.evaluate`.

        Raises:
            UserError: the evaluation would end with this error before its first feature.
        """
        check_settings(settings)
        data = self._runs.data(settings["data"])
        require_same_channels(of.saved, data)
        scored = choose_split(data, settings["split"])
        probes = {name: build(settings[name]) for name in ("knn", "linear", "logistic", "fewshot", "attentive")}
        names = choose_probes(
            settings["probe"], data, of.saved, most_logistic=probes["logistic"].max_images, encoder=settings["encoder"]
        )
        if "classifier" in names:
            _require_same_names(of.saved, data)
        for name in names:
            if name in probes:
                labels = data.labels("train", settings["token_images" if name == "attentive" else "limit"])
                if scored == "val":
                    labels = labels[stratified_split(labels, VAL_SHARE_OF_TRAIN, settings["seed"], "evaluate")[0]]
                probes[name].check(labels, of.width)


def _require_same_names(saved: Saved, data: ImageData) -> None:
    """Refuse to score a classifier on other classes.

    Raises:
        UserError: the classes differ, or the run trains no classifier.
    """
    if not declares(saved.objective_class, Classifies):
        raise UserError("probe=classifier: the run trains no classifier: leave finetune=[model…] out")
    if list(data.class_names or ()) != list(saved.facts["class_names"] or ()):
        raise UserError("evaluate=[data=…]: these images have other classes than the training: leave it out")


def trainings(rows: Sequence[Row]) -> list[Job]:
    """The training runs of a plan."""
    return [job for row in rows for job in (row.pretrain, *row.finetunes) if job is not None]


def require_space(folder: Path, rows: Sequence[Row], planned: Mapping[Path, PlannedRun]) -> None:
    """Refuse a comparison whose checkpoints cannot fit on its disk.

    Args:
        folder: of the comparison.
        rows: the whole plan.
        planned: the runs of one seed by their place.

    Raises:
        UserError: names the space that is free and the space that is needed.
    """
    sizes = {(job.method, job.stage): planned[job.place].size for job in trainings(rows) if job.place in planned}
    needed = sum(sizes[job.method, job.stage] for job in trainings(rows) if not job.place.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"out={folder}: {free / 2**30:.1f} GiB are free, and the checkpoints of the runs take at least "
            f"{needed / 2**30:.1f} GiB: free some space, or choose another place"
        )
