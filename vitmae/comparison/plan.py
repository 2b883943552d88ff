"""The jobs of a comparison: training runs and evaluations, each of them one command line.

    for each seed   scratch             ────────────────►  fine-tune ► classifier on the test split
                    any other method    pre-train ► probes    └►   fine-tune ► classifier on the test split

Pre-training sees all training images and no labels. If its objective learns from labels, it sees the labelled share
only, as probes and fine-tuning do. From scratch, the probes score the untrained encoder. A job's name contains a hash
of its command line: the same line finds its result again, and another setting makes another job.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import Gt, Le, MinLen

from vitmae.errors import UserError
from vitmae.limits import Seed, Text

Stage = Literal["pretrain", "probes", "finetune", "classifier"]
CommandName = Literal["train", "evaluate"]
AccuracyProbe = Literal["knn", "linear", "logistic", "fewshot", "attentive"]
"""Probes of a frozen encoder that give an accuracy: a comparison shows accuracies only."""

_RESERVED = (
    "model",
    "seed",
    "ckpt",
    "trust",
    "probe",
    "encoder",
    "split",
    "out",
    "backbone.weights",
    "data.train_fraction",
    "hydra.run.dir",
)
"""Settings that the comparison itself sets for each job: a user cannot set them."""


@dataclass(frozen=True)
class Design:
    """The design of a comparison: the settings of `vitmae.compare`.

    Attributes:
        out: the folder of the comparison.
        methods: the columns of the table: ``scratch``, or a choice of the group ``model`` that pre-trains;
            ``supervised`` stands for pre-training with ``model=vit``.
        seeds: each method runs with each of them.
        labels: the share of each class whose labels are used.
        probes: probes of the frozen encoder, see `vitmae.evaluate`; may be empty.
        base_lrs: candidates for the peak learning rate of fine-tuning, per 256 images; each method and seed uses the
            best one on its validation images. Empty: the one of the recipe.
        train: overrides of `vitmae.train` for every run, such as those of data, backbone and trainer.
        pretrain: overrides for every pre-training, after `train`.
        own: method -> overrides for its pre-training, after `pretrain`; on the command line ``mae=[…]``.
        finetune: overrides for every fine-tuning.
        scratch: overrides for training from scratch, after `finetune`; the last one of a setting wins.
        evaluate: overrides of `vitmae.evaluate` for every evaluation.

    Raises:
        UserError: a value occurs twice, an override sets what the comparison sets, or `own` names a method that is not
            among `methods`.
    """

    out: Text
    methods: Annotated[Sequence[str], MinLen(1)]
    seeds: Annotated[Sequence[Seed], MinLen(1)]
    labels: Annotated[float, Gt(0), Le(1)]
    probes: Sequence[AccuracyProbe]
    base_lrs: Sequence[Annotated[float, Gt(0)]]
    train: Sequence[str]
    pretrain: Sequence[str]
    finetune: Sequence[str]
    scratch: Sequence[str]
    evaluate: Sequence[str]
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("methods", "seeds", "base_lrs", "probes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name}={list(values)}: a value occurs twice: remove one")
        if unused := [name for name in self.own if name not in self.methods]:
            raise UserError(
                f"{unused[0]}=[…]: methods={list(self.methods)} must contain {unused[0]}: add it, or leave this out"
            )
        for override in self.evaluate:
            section = _probe_of(override)
            if section is not None and section not in self.probes:
                raise UserError(
                    f"evaluate={override} has no effect: probes={list(self.probes)} has no {section}: add it, or leave "
                    "this out"
                )
        stages = {name: getattr(self, name) for name in ("train", "pretrain", "finetune", "scratch", "evaluate")}
        for name, overrides in (stages | dict(self.own)).items():
            for override in overrides:
                if override.lstrip("+~").partition("=")[0] in _RESERVED:
                    setting = "" if name == "train" else f"{name}="
                    raise UserError(
                        f"{setting}{override}: a comparison sets this itself, see methods, seeds, labels, out"
                    )


@dataclass(frozen=True)
class Method:
    """One column of the table.

    Attributes:
        name: as in `Design.methods`.
        title: its name in the report.
        model: the choice of the group ``model`` for pre-training; None: from scratch.
        needs_labels: whether pre-training learns from labels.
    """

    name: str
    title: str
    model: str | None = None
    needs_labels: bool = False


def _probe_of(override: str) -> str | None:
    """The probe whose setting an override of `vitmae.evaluate` gives; None: a setting of the whole evaluation."""
    section = override.lstrip("+~").partition("=")[0].partition(".")[0]
    return section if section in get_args(AccuracyProbe) or section == "dense" else None


SCRATCH = Method("scratch", "from scratch")


@dataclass(frozen=True)
class Job:
    """One command line.

    Attributes:
        method: the name of the row's method.
        seed: the seed of the row.
        stage: the part of the row that the job is.
        command_name: `vitmae.train` or `vitmae.evaluate`.
        overrides: the settings of what is computed; the job's name contains their hash.
        place: the run's directory, or the JSON file of an evaluation.
        own_code: where the job finds the user's own YAML files, and the classes that a file may build:
            ``--config-dir=…``, ``trust=[…]``.
        base_lr: the learning rate that a fine-tuning tries; None: the one of the recipe.
    """

    method: str
    seed: int
    stage: Stage
    command_name: CommandName
    overrides: tuple[str, ...]
    place: Path
    own_code: tuple[str, ...] = ()
    base_lr: float | None = None

    @property
    def name(self) -> str:
        """The name in logs and reports: ``mae, seed 0, finetune``."""
        return f"{self.method}, seed {self.seed}, {self.stage}" + (f" at {self.base_lr:g}" if self.base_lr else "")

    @property
    def evaluated_run(self) -> Path:
        """The directory of the run that an evaluation scores."""
        return Path(next(word for word in self.overrides if word.startswith("ckpt=")).removeprefix("ckpt="))

    @property
    def arguments(self) -> list[str]:
        """The whole command line after ``python -m vitmae.<command_name>``."""
        place = f"hydra.run.dir={self.place}" if self.command_name == "train" else f"out={self.place}"
        reads_file = any(word.startswith(("ckpt=", "backbone.weights=")) for word in self.overrides)
        own_code = [word for word in self.own_code if reads_file or not word.startswith("trust=")]
        return [*own_code, *self.overrides, place]

    @property
    def command(self) -> str:
        """The exact command, as a user types it."""
        return shlex.join(["python", "-m", f"vitmae.{self.command_name}", *self.arguments])


@dataclass(frozen=True)
class Row:
    """One method with one seed.

    Attributes:
        method: the method.
        seed: the seed of all its jobs.
        pretrain: the pre-training; None: from scratch.
        finetunes: the fine-tunings: one, or one per candidate learning rate.
        probes: the evaluation of the frozen encoder; None: the design has no probes.
        classifiers: for each fine-tuning, its evaluation on the test split. Only one of them runs: that of the
            fine-tuning that is best on the validation images.
    """

    method: Method
    seed: int
    pretrain: Job | None
    finetunes: tuple[Job, ...]
    probes: Job | None
    classifiers: tuple[Job, ...]

    def finetune_of(self, classifier: Job) -> Job:
        """The fine-tuning that an evaluation among `classifiers` scores."""
        return self.finetunes[self.classifiers.index(classifier)]


def plan(design: Design, methods: Sequence[Method], folder: Path, own_code: Sequence[str] = ()) -> list[Row]:
    """All rows of a comparison, seed by seed.

    Args:
        design: what is compared.
        methods: the methods of the design, in its order.
        folder: the folder of the comparison.
        own_code: see `Job`.
    """
    return [
        _Planner(design, folder, tuple(own_code), method, seed).row() for seed in design.seeds for method in methods
    ]


@dataclass(frozen=True)
class _Planner:
    design: Design
    folder: Path
    own_code: tuple[str, ...]
    method: Method
    seed: int

    def row(self) -> Row:
        design = self.design
        pretrain = self.pretrain(self.method.model) if self.method.model else None
        finetunes = tuple(self.finetune(pretrain, rate) for rate in design.base_lrs or (None,))
        probes = None
        if design.probes:
            overrides = [f"probe=[{','.join(design.probes)}]", *([] if pretrain else ["encoder=untrained"])]
            probes = self.evaluation("probes", pretrain or finetunes[0], overrides)
        classifiers = tuple(self.evaluation("classifier", tuned, ["probe=[classifier]"]) for tuned in finetunes)
        return Row(self.method, self.seed, pretrain, finetunes, probes, classifiers)

    def pretrain(self, model: str) -> Job:
        labelled = [self.share] if self.method.needs_labels else []
        own = self.design.own.get(self.method.name, ())
        return self.training("pretrain", model, [*labelled, *self.design.pretrain, *own])

    def finetune(self, pretrain: Job | None, base_lr: float | None) -> Job:
        weights = [f"backbone.weights={pretrain.place}"] if pretrain else []
        extra = self.design.finetune if pretrain else [*self.design.finetune, *self.design.scratch]
        rate = [f"model.optimizer.base_lr={base_lr:g}"] if base_lr else []
        return self.training("finetune", "vit", [self.share, *weights, *extra, *rate], base_lr)

    @property
    def share(self) -> str:
        return f"data.train_fraction={self.design.labels:g}"

    def training(self, stage: Stage, model: str, overrides: Sequence[str], base_lr: float | None = None) -> Job:
        overrides = [f"model={model}", *self.design.train, f"seed={self.seed}", *overrides]
        return self.job(stage, "train", overrides, base_lr)

    def evaluation(self, stage: Stage, of: Job, overrides: Sequence[str]) -> Job:
        probes = self.design.probes if stage == "probes" else ("classifier",)
        settings = [word for word in self.design.evaluate if _probe_of(word) in (None, *probes)]
        overrides = [f"ckpt={of.place}", self.share, f"seed={self.seed}", *overrides, *settings]
        return self.job(stage, "evaluate", overrides, of.base_lr)

    def job(self, stage: Stage, command_name: CommandName, overrides: Sequence[str], base_lr: float | None) -> Job:
        # the folder may be moved, so its path is no part of the name
        relative = json.dumps([override.replace(f"{self.folder}/", "") for override in overrides])
        key = hashlib.sha256(relative.encode()).hexdigest()[:8]
        name = f"{self.method.name}-seed{self.seed}-{stage}-{key}"
        place = self.folder / ("runs" if command_name == "train" else "evaluations")
        place /= name if command_name == "train" else f"{name}.json"
        return Job(self.method.name, self.seed, stage, command_name, tuple(overrides), place, self.own_code, base_lr)
