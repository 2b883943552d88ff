import math

import pytest
import torch

from vitmae.probes.collapse import feature_std, rankme
from vitmae.randomness import generator


def with_spectrum(images, spectrum, seed=0):
    """Features (images, len(spectrum)) with these singular values."""
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator(seed, size), dtype=torch.float64)).Q
        for size in (images, len(spectrum))
    )
    rank = min(images, len(spectrum))
    return left[:, :rank] @ torch.diag(torch.tensor(spectrum[:rank], dtype=torch.float64)) @ right[:rank]


@pytest.mark.parametrize("images", [12, 100])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_equal_singular_values_give_their_number(images, rank):
    vectors = with_spectrum(images, [3.0] * rank + [0.0] * (16 - rank))
    assert rankme(vectors) == pytest.approx(rank, rel=1e-4)
    assert rankme(vectors.float()) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    spectrum = [4.0, 2.0, 1.0, 1.0]
    entropy = -sum(value / 8 * math.log(value / 8) for value in spectrum)
    vectors = with_spectrum(50, spectrum)
    assert rankme(vectors, eps=0) == pytest.approx(math.exp(entropy), rel=1e-9)
    shares = torch.linalg.svdvals(vectors) / 8 + 1e-2
    assert rankme(vectors, eps=1e-2) == pytest.approx((-(shares * shares.log()).sum()).exp().item(), rel=1e-9)


def test_effective_rank_ignores_scale_rotation_and_order():
    vectors = torch.randn(200, 16, generator=generator(3), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator(4), dtype=torch.float64)).Q
    assert rankme(7 * vectors[torch.randperm(200, generator=generator(5))] @ rotation) == pytest.approx(
        rankme(vectors), rel=1e-9
    )


def test_long_sets_are_summed_in_parts(monkeypatch):
    vectors = torch.randn(100, 8, generator=generator(6))
    whole = rankme(vectors), feature_std(vectors)
    monkeypatch.setattr("vitmae.probes.collapse._ROWS", 7)
    assert (rankme(vectors), feature_std(vectors)) == pytest.approx(whole, rel=1e-9)


def test_monitors_report_features_that_are_zero_or_not_finite():
    zero, broken = torch.zeros(20, 4), torch.full((20, 4), float("inf"))
    assert rankme(zero) == feature_std(zero) == 0
    assert math.isnan(rankme(broken))
    assert math.isnan(feature_std(broken))


def test_feature_std_is_zero_for_one_direction_and_one_over_sqrt_width_for_all():
    lengths = torch.rand(500, 1, generator=generator(7)) + 0.1
    assert feature_std(lengths * torch.ones(500, 64)) == pytest.approx(0, abs=1e-7)
    even = torch.randn(5000, 64, generator=generator(8))
    assert feature_std(even) == pytest.approx(1 / 8, rel=0.01)
    assert feature_std(100 * even) == pytest.approx(feature_std(even))
