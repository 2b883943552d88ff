"""Logistic regression by scikit-learn, for sets small enough that it converges.

The regularisation is chosen on a split of the training set. Then it is used in a fit of the whole training set.

Shapes: M images, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, accuracy_of, probe_result
from vitmae.probes.features import Features, require_labels, stratified_split

CS = tuple(10.0**exponent for exponent in range(-4, 4))
VAL_FRACTION = 0.2


def logistic(
    train: Features,
    test: Features,
    *,
    cs: Sequence[float] = CS,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    max_iter: int = 1000,
) -> dict[str, ProbeResult]:
    """Fit a softmax classifier until it converges: per pooling, the test accuracy with the best regularisation.

    Args:
        train: labelled; split class by class to choose C, then used as a whole.
        test: labelled; only the final fit is scored on it.
        cs: candidates for C, the inverse strength of the L2 penalty, on standardised features.
        val_fraction: the share of ``train`` on which C is chosen.
        seed: of the split.
        max_iter: of L-BFGS; a fit that stops there is used all the same.

    Raises:
        UserError: labels are missing, or ``train`` is too small to be split.
    """
    require_labels(train, test)
    fitted, held_out = split_to_choose(train.labels, val_fraction, seed)
    results = {}
    for pooling, vectors in train.pooled.items():
        accuracies = {}
        for c in sorted(cs):
            model = fit_logistic(vectors[fitted], train.labels[fitted], c, max_iter)
            accuracies[c] = accuracy_of(predict_logistic(model, vectors[held_out]), train.labels[held_out])
        chosen = max(accuracies, key=lambda c: accuracies[c])  # of equals, the strongest penalty
        model = fit_logistic(vectors, train.labels, chosen, max_iter)
        tested = accuracy_of(predict_logistic(model, test.pooled[pooling]), test.labels)
        results[pooling] = probe_result(
            "logistic",
            pooling,
            per_seed=[tested],
            num_images=len(test),
            setting={"C": chosen},
            validation=accuracies,
        )
    return results


def split_to_choose(labels: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The ids of the images that are fitted, and of those on which C is chosen; see `stratified_split`.

    Raises:
        UserError: the images are too few.
    """
    fitted, held_out = stratified_split(labels, val_fraction, seed, "logistic")
    if len(labels[fitted].unique()) < 2 or not len(held_out):
        raise UserError("logistic regression needs two classes with two training images each: add images")
    return fitted, held_out


def fit_logistic(vectors: Tensor, labels: Tensor, c: float, max_iter: int = 1000) -> Any:
    """Standardise by these images and fit: (M, D), (M,) -> a scikit-learn pipeline."""
    # here, because importing scikit-learn would delay the start of training
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))
    with warnings.catch_warnings():
        # with a weak penalty on separable features, the optimum is far away, but the predictions no longer change
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(vectors.cpu().double().numpy(), labels.cpu().numpy())


def predict_logistic(model: Any, vectors: Tensor) -> Tensor:
    """The class of each image: (M, D) -> (M,) int64."""
    return torch.from_numpy(model.predict(vectors.cpu().double().numpy()))
