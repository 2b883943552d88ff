"""The probes of `vitmae.evaluate` with their settings: each turns features into scores.

    choose on ``val`` -> score on ``test``, once

Each class is a section of conf/evaluate.yaml. What a probe computes is in `vitmae/probes/`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from vitmae.errors import UserError
from vitmae.evaluation.choice import require_same_classes
from vitmae.evaluation.probe_data import AugmentedFeatures, ProbeData
from vitmae.evaluation.scores import Score, of_probe
from vitmae.probes import attentive, collapse, dense, fewshot, knn, linear, logistic
from vitmae.probes.confidence import accuracy_of, wilson_interval
from vitmae.probes.head_training import Sweep

_log = logging.getLogger(__name__)


def _require(condition: bool, setting: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"{setting}={value}: {wanted} wanted")


def _require_sweep(probe: str, base_lrs: Sequence[float], epochs: int, warmup_epochs: int) -> None:
    _require(bool(base_lrs) and min(base_lrs) > 0, f"{probe}.base_lrs", base_lrs, "numbers above 0 are")
    _require(epochs >= 1, f"{probe}.epochs", epochs, "at least 1 is")
    _require(0 <= warmup_epochs < epochs, f"{probe}.warmup_epochs", warmup_epochs, f"fewer than epochs={epochs} are")


class Probe(Protocol):
    """A section of the settings."""

    def run(self, data: ProbeData) -> list[Score]:
        """Choose and score."""


@dataclass(frozen=True)
class KNN:
    """Nearest neighbours, see `vitmae.probes.knn`: every k is reported, and the best on the validation images marked.

    Attributes:
        ks: how many neighbours vote; those above the training images are left out.
        temperature: T of the weights exp(similarity / T).
    """

    ks: Sequence[int] = knn.KS
    temperature: float = knn.TEMPERATURE

    def __post_init__(self) -> None:
        """Say early what cannot be, as in the probes that follow."""
        _require(bool(self.ks) and min(self.ks) >= 1, "knn.ks", self.ks, "whole numbers from 1 are")
        _require(self.temperature > 0, "knn.temperature", self.temperature, "a number above 0 is")

    def run(self, data: ProbeData) -> list[Score]:
        """Classify by neighbours among the training images."""
        train, val, test = data.features()
        validated, tested = (
            knn.knn(train, part, ks=self.ks, temperature=self.temperature, device=data.device) for part in (val, test)
        )
        scores = []
        for pooling, by_k in tested.items():
            best = max(by_k, key=lambda k: validated[pooling][k].accuracy)
            scores += [of_probe(data.model.name, by_k[k], is_chosen=k == best) for k in by_k]
        return scores


@dataclass(frozen=True)
class Linear:
    """The linear probe of MAE, see `vitmae.probes.linear`.

    Attributes:
        base_lrs: candidates, per 256 images; all are trained at once.
        epochs: passes over the training images.
        warmup_epochs: how many of them warm up.
        batch_size: clamped to the training images.
        augment: encode each image in every epoch, cropped and flipped at random as `data` says. An epoch
            then costs a pass of the encoder.
    """

    base_lrs: Sequence[float] = linear.BASE_LRS
    epochs: int = linear.EPOCHS
    warmup_epochs: int = linear.WARMUP_EPOCHS
    batch_size: int = linear.BATCH_SIZE
    augment: bool = False

    def __post_init__(self) -> None:
        _require_sweep("linear", self.base_lrs, self.epochs, self.warmup_epochs)
        _require(self.batch_size >= 2, "linear.batch_size", self.batch_size, "at least 2 is")

    def run(self, data: ProbeData) -> list[Score]:
        """Train all heads, choose by pooling, and score the chosen."""
        train, val, test = data.features()
        batches = None
        if self.augment:
            if data.scored != "test" or data.store.limit is not None:
                raise UserError("linear.augment=true trains on all training images: it needs split=test and no limit")
            batches = AugmentedFeatures(data, len(train), min(self.batch_size, len(train)), self.epochs)
        results = linear.linear(
            train,
            val,
            test,
            sweep=Sweep(self.base_lrs, self.epochs, self.warmup_epochs, self.batch_size),
            seed=data.seed,
            device=data.device,
            batches=batches,
        )
        return [of_probe(data.model.name, result) for result in results.values()]


@dataclass(frozen=True)
class Logistic:
    """Logistic regression by scikit-learn, see `vitmae.probes.logistic`; its C is chosen on a part of the training set.

    Attributes:
        cs: candidates for the inverse strength of the penalty.
        val_fraction: of the training images, which choose.
        max_images: of a larger training set ``probe=all`` leaves this probe out.
    """

    cs: Sequence[float] = logistic.CS
    val_fraction: float = 0.2
    max_images: int = 20_000

    def __post_init__(self) -> None:
        _require(bool(self.cs) and min(self.cs) > 0, "logistic.cs", self.cs, "numbers above 0 are")
        _require(0 < self.val_fraction < 1, "logistic.val_fraction", self.val_fraction, "a share between 0 and 1 is")

    def run(self, data: ProbeData) -> list[Score]:
        """Fit to the optimum."""
        train, _, test = data.features()
        results = logistic.logistic(train, test, cs=self.cs, val_fraction=self.val_fraction, seed=data.seed)
        return [of_probe(data.model.name, result) for result in results.values()]


@dataclass(frozen=True)
class FewShot:
    """Closed-form ridge regression, see `vitmae.probes.fewshot`.

    Attributes:
        shots: images per class; numbers that the smallest class does not have are left out.
        seeds: one draw of shots each.
        l2: the penalty.
    """

    shots: Sequence[int] = fewshot.SHOTS
    seeds: Sequence[int] = (0, 1, 2)
    l2: float = fewshot.L2

    def __post_init__(self) -> None:
        _require(bool(self.shots) and min(self.shots) >= 1, "fewshot.shots", self.shots, "whole numbers from 1 are")
        _require(bool(self.seeds), "fewshot.seeds", self.seeds, "at least one seed is")
        _require(self.l2 > 0, "fewshot.l2", self.l2, "a number above 0 is")

    def run(self, data: ProbeData) -> list[Score]:
        """Solve for every number of shots and every draw."""
        train, _, test = data.features()
        most = int(train.labels.unique(return_counts=True)[1].min())
        shots = [count for count in self.shots if count <= most]
        if not shots:
            raise UserError(
                f"fewshot.shots={list(self.shots)}: the smallest class has {most} training images: "
                "ask for as many, or raise data.train_fraction"
            )
        if left_out := sorted(set(self.shots) - set(shots)):
            _log.info(
                "few-shot: %s shots are left out, the smallest class has %d training images",
                ", ".join(map(str, left_out)),
                most,
            )
        results = fewshot.fewshot(train, test, shots=shots, seeds=self.seeds, l2=self.l2)
        return [of_probe(data.model.name, result) for by_shots in results.values() for result in by_shots.values()]


@dataclass(frozen=True)
class Attentive:
    """One query that looks at the patch tokens, see `vitmae.probes.attentive`.

    Attributes:
        base_lrs: candidates, per 256 images.
        epochs: passes over the training images.
        warmup_epochs: how many of them warm up.
        batch_size: clamped to the training images.
        num_heads: of the attention; null: of width 64.
    """

    base_lrs: Sequence[float] = attentive.BASE_LRS
    epochs: int = attentive.EPOCHS
    warmup_epochs: int = attentive.WARMUP_EPOCHS
    batch_size: int = attentive.BATCH_SIZE
    num_heads: int | None = None

    def __post_init__(self) -> None:
        _require_sweep("attentive", self.base_lrs, self.epochs, self.warmup_epochs)
        _require(self.batch_size >= 1, "attentive.batch_size", self.batch_size, "at least 1 is")
        _require(self.num_heads is None or self.num_heads >= 1, "attentive.num_heads", self.num_heads, "at least 1 is")

    def run(self, data: ProbeData) -> list[Score]:
        """Train all heads, and score the one that is best on the validation images."""
        result = attentive.attentive(
            *data.features(patches=True),
            num_heads=self.num_heads,
            sweep=Sweep(self.base_lrs, self.epochs, self.warmup_epochs, self.batch_size),
            seed=data.seed,
            device=data.device,
        )
        return [of_probe(data.model.name, result)]


@dataclass(frozen=True)
class Dense:
    """Classes of pixels from patch tokens, see `vitmae.probes.dense`; for data with masks.

    Attributes:
        base_lrs: candidates, per 256 images.
        epochs: passes over the training images.
        warmup_epochs: how many of them warm up.
        batch_size: clamped to the training images.
    """

    base_lrs: Sequence[float] = dense.BASE_LRS
    epochs: int = dense.EPOCHS
    warmup_epochs: int = dense.WARMUP_EPOCHS
    batch_size: int = dense.BATCH_SIZE

    def __post_init__(self) -> None:
        _require_sweep("dense", self.base_lrs, self.epochs, self.warmup_epochs)
        _require(self.batch_size >= 1, "dense.batch_size", self.batch_size, "at least 1 is")

    def run(self, data: ProbeData) -> list[Score]:
        """Train all heads, and score the one that is best on the validation images."""
        result = dense.dense(
            *data.segmented(),
            sweep=Sweep(self.base_lrs, self.epochs, self.warmup_epochs, self.batch_size),
            seed=data.seed,
            device=data.device,
        )
        return [
            Score(
                data.model.name,
                "dense",
                "patches",
                "mean IoU",
                result.mean_iou,
                result.num_images,
                result.interval,
                dict(result.setting),
                dict(result.validation),
            )
        ]


@dataclass(frozen=True)
class CollapseMonitors:
    """RankMe and the spread of the features, see `vitmae.probes.collapse`; they need no labels."""

    def run(self, data: ProbeData) -> list[Score]:
        """Measure the images that are scored."""
        scores = []
        for pooling, vectors in data.store(data.scored).pooled.items():
            for metric, value in (("RankMe", collapse.rankme(vectors)), ("feature std", collapse.feature_std(vectors))):
                scores.append(Score(data.model.name, "collapse", pooling, metric, value, len(vectors)))
        return scores


@dataclass(frozen=True)
class Classifier:
    """The model's own head, for a supervised or fine-tuned checkpoint: nothing is trained."""

    def run(self, data: ProbeData) -> list[Score]:
        """Classify the images that are scored."""
        classifier = require_same_classes(data.model, data.images)
        predicted, labels = [], []
        for batch in data.images.evaluation_dataloader(data.scored, data.store.limit):
            predicted.append(data.model.logits(batch.images).argmax(dim=1))
            labels.append(batch.labels.cpu())
        count = sum(map(len, labels))
        accuracy = accuracy_of(torch.cat(predicted), torch.cat(labels))
        return [
            Score(
                data.model.name,
                "classifier",
                classifier.pool,
                "accuracy",
                accuracy,
                count,
                wilson_interval(accuracy, count),
            )
        ]
