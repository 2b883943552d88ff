"""Few-shot linear accuracy: closed-form ridge regression on a handful of images per class.

The evaluation of ViT (https://arxiv.org/abs/2010.11929, §4.1), with the settings of its authors' public evaluator:
features are standardised by the shots' own mean and standard deviation (+1e-5), a constant feature of 100 replaces the
bias, targets are -1 and +1, the penalty is 2^10, and nothing is tuned.

Shapes: M images, S shots in all, D width, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, accuracy_of, probe_result
from vitmae.probes.features import Features, require_labels
from vitmae.randomness import permutation

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10
BIAS = 100.0

_ROWS = 8192  # test images at a time, so that float64 copies stay small


@dataclass(frozen=True)
class Ridge:
    """A linear classifier on standardised features, in float64 on the CPU.

    Attributes:
        mean: (D,), of the shots.
        std: (D,), of the shots.
        weight: (D + 1, K); the last row is multiplied by the constant feature.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor

    def decide(self, vectors: Tensor) -> Tensor:
        """Decision values, near +1 for the class and -1 for the others: (M, D) -> (M, K) float64."""
        return _with_bias((vectors.cpu().double() - self.mean) / self.std) @ self.weight

    def predict(self, vectors: Tensor) -> Tensor:
        """The class of the largest decision value: (M, D) -> (M,) int64."""
        return torch.cat([self.decide(rows).argmax(1) for rows in vectors.split(_ROWS)])


def fit_ridge(vectors: Tensor, labels: Tensor, num_classes: int, l2: float = L2) -> Ridge:
    """Solve (X'X + l2 I) W = X'Y for standardised X with a constant and Y in {-1, 1}: (S, D), (S,) -> W.

    By the eigenvectors of X'X, or of XX' if there are fewer shots than features: W = X' (XX' + l2 I)^-1 Y is the same
    solution.

    Args:
        vectors: (S, D), any floating type.
        labels: (S,) int64 in [0, ``num_classes``).
        num_classes: K.
        l2: the penalty on the sum of squares of W, the bias row included.
    """
    vectors = vectors.cpu().double()
    mean, std = vectors.mean(0), vectors.std(0, correction=0) + 1e-5  # (D,)
    features = _with_bias((vectors - mean) / std)  # (S, D + 1)
    targets = 2.0 * torch.nn.functional.one_hot(labels.cpu(), num_classes).double() - 1.0
    if features.shape[0] >= features.shape[1]:
        eigenvalues, basis = torch.linalg.eigh(features.T @ features)  # (D + 1,), (D + 1, D + 1)
        right, left = basis.T @ (features.T @ targets), basis
    else:
        eigenvalues, basis = torch.linalg.eigh(features @ features.T)  # (S,), (S, S)
        right, left = basis.T @ targets, features.T @ basis
    return Ridge(mean, std, (left / (eigenvalues + l2)) @ right)


def draw_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Choose ``shots`` images of every class: labels (M,) -> ids (K * shots,) int64, class by class.

    With one seed, fewer shots are a subset of more shots, so the draws add no noise to a curve over shots.

    Raises:
        UserError: a class has fewer images.
    """
    chosen = []
    for label in labels.unique().tolist():
        ids = (labels == label).nonzero()[:, 0]
        if len(ids) < shots:
            raise UserError(
                f"{shots} shots need {shots} images of every class, but class {label} has {len(ids)}: "
                f"choose at most {len(ids)} shots"
            )
        chosen.append(ids[permutation(len(ids), seed, "fewshot", label)[:shots]])
    return torch.cat(chosen)


def fewshot(
    train: Features,
    test: Features,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> dict[str, dict[int, ProbeResult]]:
    """Ridge regression on a few images per class: per pooling and number of shots, the mean over the draws.

    Args:
        train: labelled; the shots are drawn from it.
        test: labelled; all of it is classified.
        shots: images per class.
        seeds: one draw of shots each, the same for all poolings.
        l2: the penalty.

    Raises:
        UserError: labels are missing, or a class has too few images.
    """
    require_labels(train, test)
    num_classes = train.num_classes
    drawn = {(count, seed): draw_shots(train.labels, count, seed) for count in shots for seed in seeds}
    results: dict[str, dict[int, ProbeResult]] = {}
    for pooling, vectors in train.pooled.items():
        results[pooling] = {}
        for count in shots:
            accuracies = []
            for seed in seeds:
                ids = drawn[count, seed]
                ridge = fit_ridge(vectors[ids], train.labels[ids], num_classes, l2)
                accuracies.append(accuracy_of(ridge.predict(test.pooled[pooling]), test.labels))
            results[pooling][count] = probe_result(
                "fewshot",
                pooling,
                per_seed=accuracies,
                num_images=len(test),
                setting={"shots": count, "l2": l2},
            )
    return results


def _with_bias(features: Tensor) -> Tensor:
    """Append the constant feature: (M, D) -> (M, D + 1)."""
    return torch.cat([features, features.new_full((len(features), 1), BIAS)], 1)
