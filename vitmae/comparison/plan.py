"""What a comparison consists of: training runs and evaluations, each one command line.

    for each seed   scratch       ────────────────────────►  fine-tune ► classifier on the test split
                    mae           pre-train ► probes    └►   fine-tune ► classifier on the test split
                    masked_patch  likewise
                    supervised    likewise

Pre-training sees all training images and no label; probes and fine-tuning learn from the labelled share, and so does
supervised pre-training. From scratch, probes look at the untrained encoder. A job is known by its command line, so what
has been done is found again, and another setting is another job.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitmae.errors import UserError
from vitmae.evaluation.probe_names import Probe

Method = Literal["scratch", "masked_patch", "mae", "supervised"]
Stage = Literal["pretrain", "probes", "finetune", "classifier"]
_OWN = (
    "model",
    "seed",
    "ckpt",
    "probe",
    "encoder",
    "split",
    "out",
    "backbone.weights",
    "data.train_fraction",
    "hydra.run.dir",
)
"""Words that tell the jobs of a comparison apart: they are not the user's to set."""
PROBES = ("knn", "linear", "logistic", "fewshot", "attentive")
"""Probes of a frozen encoder that say an accuracy, which is what a comparison shows."""
Module = Literal["train", "evaluate"]

MODELS: dict[str, str] = {"masked_patch": "masked_patch", "mae": "mae", "supervised": "vit"}
"""The model that pre-trains, by method."""


@dataclass(frozen=True)
class Job:
    """One command line.

    Attributes:
        method: the row that it belongs to.
        seed: of the run.
        stage: what it is for.
        module: ``train`` or ``evaluate``.
        words: the overrides after ``python -m vitmae.<module>``, without the place that results go to.
        place: the run's directory, or the JSON file of an evaluation.
        base_lr: the candidate that a fine-tuning tries; None for the recipe's own.
    """

    method: Method
    seed: int
    stage: Stage
    module: Module
    words: tuple[str, ...]
    place: Path
    base_lr: float | None = None

    @property
    def name(self) -> str:
        """For people: ``mae, seed 0, finetune``."""
        return f"{self.method}, seed {self.seed}, {self.stage}" + (f" at {self.base_lr:g}" if self.base_lr else "")

    @property
    def arguments(self) -> list[str]:
        """All words, with the place."""
        place = f"hydra.run.dir={self.place}" if self.module == "train" else f"out={self.place}"
        return [*self.words, place]

    @property
    def command(self) -> str:
        """The exact command, as one would type it."""
        return shlex.join(["python", "-m", f"vitmae.{self.module}", *self.arguments])


@dataclass(frozen=True)
class Design:
    """What is compared.

    Attributes:
        methods: the rows.
        seeds: each row is run with each.
        labels: the share of each class whose labels are used.
        probes: of `vitmae.evaluate`, on the frozen encoder; may be empty.
        base_lrs: candidates for the peak learning rate of fine-tuning, per 256 images; each method and seed takes
            the one that is best on its validation images. Empty: the recipe's own.
        common: words of `vitmae.train` for every run: data, backbone, trainer.
        pretrain: for every pre-training run besides.
        masked_patch: for this method's pre-training besides.
        mae: likewise.
        supervised: likewise.
        finetune: for every fine-tuning run.
        scratch: for training from scratch, after `finetune`; the last word wins.
        evaluate: words of `vitmae.evaluate` for every evaluation.
    """

    methods: Sequence[Method]
    seeds: Sequence[int]
    labels: float
    probes: Sequence[Probe]
    base_lrs: Sequence[float]
    common: Sequence[str]
    pretrain: Sequence[str]
    masked_patch: Sequence[str]
    mae: Sequence[str]
    supervised: Sequence[str]
    finetune: Sequence[str]
    scratch: Sequence[str]
    evaluate: Sequence[str]

    def __post_init__(self) -> None:
        """Say early what cannot be."""
        for name in ("common", "pretrain", "masked_patch", "mae", "supervised", "finetune", "scratch", "evaluate"):
            for word in getattr(self, name):
                if word.lstrip("+~").partition("=")[0] in _OWN:
                    setting = "" if name == "common" else f"{name}="
                    raise UserError(f"{setting}{word}: a comparison sets that itself, see methods, seeds, labels, out")
        for name, values in (
            ("methods", self.methods),
            ("seeds", self.seeds),
            ("base_lrs", self.base_lrs),
            ("probes", self.probes),
        ):
            if len(set(values)) < len(values):
                raise UserError(f"{name}={list(values)}: one of them is there twice")
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            if not values:
                raise UserError(f"{name}=[]: at least one is wanted")
        if other := [probe for probe in self.probes if probe not in PROBES]:
            raise UserError(
                f"probes={other}: a comparison shows the accuracies of {', '.join(PROBES)}: ask for "
                "others by vitmae.evaluate on its runs"
            )
        for name, values, wanted in (
            ("seeds", [seed for seed in self.seeds if seed < 0], "whole numbers from 0"),
            ("base_lrs", [rate for rate in self.base_lrs if not rate > 0], "above 0"),
        ):
            if values:
                raise UserError(f"{name}={values}: {wanted} are wanted")
        if not 0 < self.labels <= 1:
            raise UserError(f"labels={self.labels}: a share in (0, 1] is wanted")


@dataclass(frozen=True)
class Row:
    """One method with one seed.

    Attributes:
        method: the method.
        seed: of all its runs.
        pretrain: None from scratch.
        finetunes: one, or one for each candidate learning rate.
        probes: of the frozen encoder; None if there are none.
        classifiers: of each fine-tuning, the evaluation on the test split; only that of the best on the validation
            images is to be run.
    """

    method: Method
    seed: int
    pretrain: Job | None
    finetunes: tuple[Job, ...]
    probes: Job | None
    classifiers: tuple[Job, ...]

    def tuned_of(self, classifier: Job) -> Job:
        """The fine-tuning that one of the classifiers is of."""
        return self.finetunes[self.classifiers.index(classifier)]


def plan(design: Design, folder: Path) -> list[Row]:
    """All rows, seed by seed.

    Args:
        design: what is compared.
        folder: where runs and evaluations go.
    """
    return [_Planner(design, folder, method, seed).row() for seed in design.seeds for method in design.methods]


@dataclass(frozen=True)
class _Planner:
    design: Design
    folder: Path
    method: Method
    seed: int

    def row(self) -> Row:
        pretrain = None if self.method == "scratch" else self.pretrain()
        finetunes = tuple(self.finetune(pretrain, rate) for rate in self.design.base_lrs or (None,))
        probes = None
        if self.design.probes:
            words = [f"probe=[{','.join(self.design.probes)}]"]
            words += [] if pretrain else ["encoder=untrained"]
            probes = self.evaluation("probes", pretrain or finetunes[0], words)
        classifiers = tuple(self.evaluation("classifier", tuned, ["probe=[classifier]"]) for tuned in finetunes)
        return Row(self.method, self.seed, pretrain, finetunes, probes, classifiers)

    def pretrain(self) -> Job:
        design = self.design
        labelled = [self.share] if self.method == "supervised" else []
        own: Sequence[str] = getattr(design, self.method)
        return self.training("pretrain", [f"model={MODELS[self.method]}", *labelled, *design.pretrain, *own])

    def finetune(self, pretrain: Job | None, base_lr: float | None) -> Job:
        weights = [f"backbone.weights={pretrain.place}"] if pretrain else []
        extra = self.design.finetune if pretrain else [*self.design.finetune, *self.design.scratch]
        rate = [f"model.optimizer.base_lr={base_lr:g}"] if base_lr else []
        return self.training("finetune", ["model=vit", self.share, *weights, *extra, *rate], base_lr)

    @property
    def share(self) -> str:
        return f"data.train_fraction={self.design.labels:g}"

    def training(self, stage: Stage, words: Sequence[str], base_lr: float | None = None) -> Job:
        model, *others = words
        return self.job(stage, "train", [model, *self.design.common, f"seed={self.seed}", *others], "", base_lr)

    def evaluation(self, stage: Stage, of: Job, words: Sequence[str]) -> Job:
        words = [f"ckpt={of.place}", self.share, f"seed={self.seed}", *words, *self.design.evaluate]
        return self.job(stage, "evaluate", words, ".json", of.base_lr)

    def job(self, stage: Stage, module: Module, words: Sequence[str], suffix: str, base_lr: float | None) -> Job:
        about = json.dumps([word.replace(f"{self.folder}/", "") for word in words])  # a folder may be moved
        key = hashlib.sha256(about.encode()).hexdigest()[:8]
        name = f"{self.method}-seed{self.seed}-{stage}-{key}{suffix}"
        folder = self.folder / ("runs" if module == "train" else "evaluations")
        return Job(self.method, self.seed, stage, module, tuple(words), folder / name, base_lr)
