import math

import numpy
import pytest
import torch
from scipy.stats import binomtest

from vitmae.errors import UserError
from vitmae.probes.confidence import bootstrap_ratio_interval, mean_std, probe_result, wilson_interval
from vitmae.randomness import generator


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (80, 80), (1, 1), (7, 372), (9_970, 10_000)])
def test_wilson_interval_equals_scipys_and_the_roots_of_the_score_equation(correct, total):
    interval = wilson_interval(correct / total, total)
    assert interval == pytest.approx(binomtest(correct, total).proportion_ci(0.95, "wilson"), abs=1e-12)
    # at a bound p the observed share is z standard errors of p away: (share - p)^2 = z^2 p (1 - p) / n
    assert interval[0] <= correct / total <= interval[1]
    share, spread = correct / total, 1.959963984540054**2 / total
    roots = numpy.roots([1 + spread, -2 * share - spread, share**2])
    assert interval == pytest.approx(sorted(roots.real), abs=1e-7)


def test_wilson_interval_covers_the_truth_19_times_in_20():
    hits = torch.rand(4000, 60, generator=generator(0)).lt(0.9).double().mean(1)
    covered = [low <= 0.9 <= high for low, high in (wilson_interval(hit, 60) for hit in hits.tolist())]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.02)


def test_an_accuracy_over_no_images_is_refused():
    with pytest.raises(UserError, match="no test images"):
        wilson_interval(0.5, 0)


def test_spread_over_seeds_is_the_sample_standard_deviation_and_unknown_for_one_seed():
    assert mean_std([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.1))
    mean, std = mean_std([0.5])
    assert mean == 0.5
    assert math.isnan(std)


def test_a_result_holds_the_mean_of_its_seeds_and_its_interval():
    result = probe_result("knn", "avg", per_seed=[0.7, 0.9], num_images=50, setting={"k": 5})
    assert result.accuracy == pytest.approx(0.8)
    assert result.interval == wilson_interval(0.8, 50)
    assert result.per_seed == (0.7, 0.9)


def test_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = torch.rand(400, 1, generator=generator(1))
    low, high = bootstrap_ratio_interval(values, torch.ones(400, 1), 0)
    error = values.std().item() / 20
    assert (low + high) / 2 == pytest.approx(values.mean().item(), abs=error / 4)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (low, high) == bootstrap_ratio_interval(values, torch.ones(400, 1), 0)
    assert (low, high) != bootstrap_ratio_interval(values, torch.ones(400, 1), 1)


def test_bootstrap_resamples_numerator_and_denominator_together():
    sizes = torch.randint(1, 100, (30, 2), generator=generator(2))
    assert bootstrap_ratio_interval(sizes, 2 * sizes, 0) == (0.5, 0.5)


def test_bootstrap_leaves_out_a_class_that_no_image_holds():
    ratio = torch.full((30, 1), 3.0)
    numerators, denominators = torch.cat([ratio, 0 * ratio], 1), torch.cat([2 * ratio, 0 * ratio], 1)
    assert bootstrap_ratio_interval(numerators, denominators, 0) == (0.5, 0.5)
