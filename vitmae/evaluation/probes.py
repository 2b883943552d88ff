"""The probes of `vitmae.evaluate` with their settings: features -> scores.

    train on ``train`` -> choose on ``val`` -> score on ``test``, once

Each class is a section of conf/evaluate.yaml. The algorithms are in `vitmae/probes/`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor

from vitmae.errors import UserError
from vitmae.evaluation.choice import require_same_classes
from vitmae.evaluation.probe import Count, Counts, Probe, Rates, require_room_after_warmup
from vitmae.evaluation.probe_data import AugmentedFeatures, ProbeData
from vitmae.evaluation.scores import Score, of_probe
from vitmae.limits import Seed, check_arguments
from vitmae.probes import attentive, collapse, dense, fewshot, knn, linear, logistic
from vitmae.probes.confidence import accuracy_of, wilson_interval
from vitmae.probes.head_training import Sweep

_log = logging.getLogger(__name__)


@check_arguments("knn")
@dataclass(frozen=True)
class KNN(Probe):
    """Nearest neighbours, see `vitmae.probes.knn`; every k is reported, the best on the validation images is marked.

    Attributes:
        ks: numbers of neighbours that vote; numbers above that of the training images are left out.
        temperature: T in the weights exp(similarity / T).
    """

    ks: Counts = knn.KS
    temperature: Annotated[float, Gt(0)] = knn.TEMPERATURE

    def check(self, labels: Tensor, width: int) -> None:
        """Refuse a bank without k images."""
        knn.usable_ks(self.ks, len(labels))

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


@check_arguments("linear")
@dataclass(frozen=True)
class Linear(Probe):
    """The linear probe of MAE, see `vitmae.probes.linear`.

    Attributes:
        base_lrs: candidate learning rates, per 256 images; all heads are trained at once.
        epochs: passes over the training images.
        warmup_epochs: how many of them warm up.
        batch_size: clamped to the training images.
        augment: crop and flip each image at random in every epoch, as `data` says, and encode it again. Each epoch
            then costs a pass of the encoder.
    """

    base_lrs: Rates = linear.BASE_LRS
    epochs: Count = linear.EPOCHS
    warmup_epochs: Annotated[int, Ge(0)] = linear.WARMUP_EPOCHS
    batch_size: Annotated[int, Ge(2)] = linear.BATCH_SIZE
    augment: bool = False

    def __post_init__(self) -> None:
        require_room_after_warmup("linear", self.epochs, self.warmup_epochs)

    def run(self, data: ProbeData) -> list[Score]:
        """Train all heads, choose one for each pooling, and score it.

        Raises:
            UserError: `augment` is set, but some training images are not used.
        """
        train, val, test = data.features()
        batches = None
        if self.augment:
            if data.scored != "test" or data.store.limit is not None:
                raise UserError("linear.augment=true trains on all training images: set split=test and limit=null")
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


@check_arguments("logistic")
@dataclass(frozen=True)
class Logistic(Probe):
    """Logistic regression by scikit-learn, see `vitmae.probes.logistic`; C is chosen on a part of the training images.

    Attributes:
        cs: candidates for the inverse strength of the penalty.
        val_fraction: the share of the training images that chooses C.
        max_images: ``probe=all`` leaves this probe out if the set has more training images.
    """

    cs: Rates = logistic.CS
    val_fraction: Annotated[float, Gt(0), Lt(1)] = logistic.VAL_FRACTION
    max_images: Annotated[int, Ge(0)] = 20_000

    def check(self, labels: Tensor, width: int) -> None:
        """Refuse images that cannot be split."""
        logistic.split_to_choose(labels, self.val_fraction, seed=0)  # the numbers are those of every seed

    def run(self, data: ProbeData) -> list[Score]:
        """Fit each C until it converges, choose one for each pooling, and score it."""
        train, _, test = data.features()
        results = logistic.logistic(train, test, cs=self.cs, val_fraction=self.val_fraction, seed=data.seed)
        return [of_probe(data.model.name, result) for result in results.values()]


@check_arguments("fewshot")
@dataclass(frozen=True)
class FewShot(Probe):
    """Closed-form ridge regression, see `vitmae.probes.fewshot`.

    Attributes:
        shots: numbers of training images per class; numbers above that of the smallest class are left out.
        seeds: each seed draws its own shots.
        l2: the strength of the penalty.
    """

    shots: Counts = fewshot.SHOTS
    seeds: Annotated[Sequence[Seed], MinLen(1)] = fewshot.SEEDS
    l2: Annotated[float, Gt(0)] = fewshot.L2

    def check(self, labels: Tensor, width: int) -> None:
        """Refuse a smallest class with fewer images than all of `shots`."""
        self._usable(labels)

    def _usable(self, labels: Tensor) -> tuple[list[int], int]:
        """The shots that every class has, and the number of images of the smallest class."""
        most = int(labels.unique(return_counts=True)[1].min())
        shots = [count for count in self.shots if count <= most]
        if not shots:
            raise UserError(
                f"fewshot.shots={list(self.shots)}: the smallest class has {most} training images: "
                f"must be ≤ {most}, or raise data.train_fraction"
            )
        return shots, most

    def run(self, data: ProbeData) -> list[Score]:
        """Solve for every number of shots and every seed.

        Raises:
            UserError: the smallest class has fewer training images than all of `shots`.
        """
        train, _, test = data.features()
        shots, most = self._usable(train.labels)
        if left_out := sorted(set(self.shots) - set(shots)):
            shown = ", ".join(map(str, left_out))
            _log.info("few-shot: %s shots are left out: the smallest class has %d training images", shown, most)
        results = fewshot.fewshot(train, test, shots=shots, seeds=self.seeds, l2=self.l2)
        return [of_probe(data.model.name, result) for by_shots in results.values() for result in by_shots.values()]


@check_arguments("attentive")
@dataclass(frozen=True)
class Attentive(Probe):
    """A classifier on one query that attends to the patch tokens, see `vitmae.probes.attentive`.

    Attributes:
        base_lrs: candidates, per 256 images.
        epochs: passes over the training images.
        warmup_epochs: how many of them warm up.
        batch_size: clamped to the training images.
        num_heads: heads of the attention; null: heads of width 64.
    """

    base_lrs: Rates = attentive.BASE_LRS
    epochs: Count = attentive.EPOCHS
    warmup_epochs: Annotated[int, Ge(0)] = attentive.WARMUP_EPOCHS
    batch_size: Count = attentive.BATCH_SIZE
    num_heads: Count | None = None

    def __post_init__(self) -> None:
        require_room_after_warmup("attentive", self.epochs, self.warmup_epochs)

    def check(self, labels: Tensor, width: int) -> None:
        """Refuse heads that do not divide the width."""
        if self.num_heads is not None and width % self.num_heads:
            raise UserError(f"attentive.num_heads={self.num_heads}: must be a divisor of the encoder's width, {width}")

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


@check_arguments("dense")
@dataclass(frozen=True)
class Dense:
    """Classifies pixels by patch tokens, see `vitmae.probes.dense`; for data with masks.

    Attributes:
        base_lrs: candidates, per 256 images.
        epochs: passes over the training images.
        warmup_epochs: how many of them warm up.
        batch_size: clamped to the training images.
    """

    base_lrs: Rates = dense.BASE_LRS
    epochs: Count = dense.EPOCHS
    warmup_epochs: Annotated[int, Ge(0)] = dense.WARMUP_EPOCHS
    batch_size: Count = dense.BATCH_SIZE

    def __post_init__(self) -> None:
        require_room_after_warmup("dense", self.epochs, self.warmup_epochs)

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
    """RankMe and the standard deviation of the features, see `vitmae.probes.collapse`; no labels are needed."""

    def run(self, data: ProbeData) -> list[Score]:
        """Measure the features of the scored images."""
        scores = []
        for pooling, vectors in data.store(data.scored).pooled.items():
            for metric, value in (("RankMe", collapse.rankme(vectors)), ("feature std", collapse.feature_std(vectors))):
                scores.append(Score(data.model.name, "collapse", pooling, metric, value, len(vectors)))
        return scores


@dataclass(frozen=True)
class Classifier:
    """The trained head of a supervised or fine-tuned checkpoint; nothing is trained here."""

    def run(self, data: ProbeData) -> list[Score]:
        """Classify the scored images.

        Raises:
            UserError: see `vitmae.evaluation.choice.require_same_classes`.
        """
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
