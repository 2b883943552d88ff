"""How certain an accuracy is: its interval and its spread over seeds; and the result that every probe returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.randomness import generator

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution: a two-sided 95 % interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class ProbeResult:
    """One probe on one kind of features.

    Attributes:
        probe: "knn", "linear", "logistic", "fewshot" or "attentive".
        pooling: "cls", "avg", or "patches" where the probe reads patch tokens.
        accuracy: share of test images classified correctly, in [0, 1]; the mean over ``per_seed``.
        interval: the 95 % Wilson interval of ``accuracy`` over ``num_images``: for the choice of the test images,
            not for that of the seeds.
        num_images: test images.
        setting: the hyper-parameters of this accuracy, fixed, or chosen by ``validation``.
        validation: accuracy on the validation split for every candidate; empty if nothing was chosen.
        per_seed: the accuracy of every seed.
    """

    probe: str
    pooling: str
    accuracy: float
    interval: Interval
    num_images: int
    setting: Mapping[str, float]
    validation: Mapping[float, float] = field(default_factory=dict)
    per_seed: tuple[float, ...] = ()


def probe_result(
    probe: str,
    pooling: str,
    *,
    per_seed: Sequence[float],
    num_images: int,
    setting: Mapping[str, float],
    validation: Mapping[float, float] | None = None,
) -> ProbeResult:
    """A `ProbeResult` with the mean of the seeds' accuracies and its interval."""
    accuracy = fmean(per_seed)
    return ProbeResult(
        probe=probe,
        pooling=pooling,
        accuracy=accuracy,
        interval=wilson_interval(accuracy, num_images),
        num_images=num_images,
        setting=setting,
        validation=validation or {},
        per_seed=tuple(per_seed),
    )


def accuracy_of(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries: two (M,) int64 tensors -> a number in [0, 1]."""
    return (predictions == labels).double().mean().item()


def wilson_interval(accuracy: float, num_images: int) -> Interval:
    """The 95 % score interval of a proportion (Wilson, JASA 22, 1927): (low, high), both in [0, 1].

    Unlike accuracy ± z·standard error it is valid for few images and for accuracies near 0 and 1.

    Args:
        accuracy: share of successes, in [0, 1].
        num_images: number of trials.

    Raises:
        UserError: there are no trials.
    """
    if num_images < 1:
        raise UserError("an accuracy over no test images has no interval: check the test split")
    shrink = 1 + _Z95**2 / num_images
    centre = (accuracy + _Z95**2 / (2 * num_images)) / shrink
    half = _Z95 / shrink * math.sqrt(accuracy * (1 - accuracy) / num_images + (_Z95 / (2 * num_images)) ** 2)
    # the bounds enclose the accuracy; at 0 and 1, where one equals it, rounding must not change that
    return min(max(centre - half, 0.0), accuracy), max(min(centre + half, 1.0), accuracy)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (n - 1 in the denominator; nan for a single value)."""
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


def bootstrap_ratio_interval(
    numerators: Tensor, denominators: Tensor, *key: int | str, resamples: int = 1000
) -> Interval:
    """95 % percentile bootstrap over images of a mean of ratios of sums, such as the mean IoU (Efron, 1979).

    Whole images are drawn, because the pixels of one image are not independent.

    Args:
        numerators: per image and class, such as the intersection in pixels: (M, K).
        denominators: of the same shape, such as the union. A class whose sum is 0 is left out of the mean.
        key: of the random numbers, such as a seed.
        resamples: how many sets of M images are drawn.
    """
    images = len(numerators)
    ratios = []
    for drawn in torch.randint(images, (resamples, images), generator=generator(*key, "bootstrap")):
        weights = drawn.bincount(minlength=images).double()  # (M,): how often each was drawn
        ratios.append((weights @ numerators.double() / (weights @ denominators.double())).nanmean())
    low, high = torch.stack(ratios).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
