"""The images of an evaluation in three parts: to train a probe, to choose its hyper-parameters, to score it.

Shapes: M images, B batch, P poolings, D width, N patches.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vitmae.data.datamodule import ImageData
from vitmae.evaluation.feature_store import FeatureStore, Split
from vitmae.probes import dense
from vitmae.probes.features import Features, stratified_split
from vitmae.trained.model import Model

VAL_SHARE_OF_TRAIN = 0.1
"""The share of the training images that chooses hyper-parameters, if the validation split is scored."""


class ProbeData:
    """Three sets of features: train, val (which chooses) and test (which is scored); computed at first use.

    Args:
        model: the frozen model.
        store: the features of the model.
        images: the images, prepared.
        scored: ``test``, or ``val``; with ``val``, a tenth of each class of the training images chooses.
        seed: the seed of that tenth and of the probes.
    """

    def __init__(self, model: Model, store: FeatureStore, images: ImageData, scored: Split, seed: int) -> None:
        self.model, self.store, self.images, self.scored, self.seed = model, store, images, scored, seed
        self.device = model.device

    def features(self, patches: bool = False) -> tuple[Features, Features, Features]:
        """The features of (train, val, test); with ``patches`` also their patch tokens."""
        train, test = self.store("train", patches), self.store(self.scored, patches)
        ids = self._split(train.labels)
        if ids is None:
            return train, self.store("val", patches), test
        return train.subset(ids[0]), train.subset(ids[1]), test

    def segmented(self) -> tuple[dense.SegmentedSet, dense.SegmentedSet, dense.SegmentedSet]:
        """The patch tokens of (train, val, test), with the class of each pixel."""
        train, val, test = self.features(patches=True)
        masks, scored = self.store.masks("train"), self.store.masks(self.scored)
        ids = self._split(self.store("train", patches=True).labels)
        fitted, choosing = (masks, self.store.masks("val")) if ids is None else (masks[ids[0]], masks[ids[1]])
        return dense.SegmentedSet(train, fitted), dense.SegmentedSet(val, choosing), dense.SegmentedSet(test, scored)

    def _split(self, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self.scored == "test" else stratified_split(labels, VAL_SHARE_OF_TRAIN, self.seed, "evaluate")


class AugmentedFeatures:
    """Batches of features of training images that are cropped and flipped again in each epoch.

    Iterating gives (features (P, B, D), labels (B,)), `epochs` times as many batches as an epoch has.

    Args:
        data: the images and the model.
        count: the number of training images.
        batch_size: B.
        epochs: passes over the training images.
    """

    def __init__(self, data: ProbeData, count: int, batch_size: int, epochs: int) -> None:
        self.data, self.batch_size, self.epochs = data, batch_size, epochs
        self.steps_per_epoch = count // batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader = self.data.images.train_dataloader()
        for _ in range(self.epochs):
            vectors: list[Tensor] = []
            labels: list[Tensor] = []
            given = 0
            for part in self.data.model.features(loader):
                vectors.append(torch.stack(list(part.pooled.values())))  # (P, b, D)
                labels.append(part.labels)
                while sum(map(len, labels)) >= self.batch_size and given < self.steps_per_epoch:
                    every, named = torch.cat(vectors, 1), torch.cat(labels)
                    batch = every[:, : self.batch_size], named[: self.batch_size]
                    yield batch[0].to(self.data.device), batch[1].to(self.data.device)
                    vectors, labels = [every[:, self.batch_size :]], [named[self.batch_size :]]
                    given += 1
