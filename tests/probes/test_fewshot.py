import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch.nn import functional as F

from tests.probes.parts import clusters
from vitmae.errors import UserError
from vitmae.probes.fewshot import draw_shots, fewshot, fit_ridge
from vitmae.randomness import generator


def shots_of(count, dim, num_classes=4, seed=0):
    vectors = torch.randn(count, dim, generator=generator(seed), dtype=torch.float64) * 3 + 1
    return vectors, torch.arange(count) % num_classes


@pytest.mark.parametrize(("count", "dim"), [(200, 12), (20, 64), (13, 12), (12, 12)])
def test_ridge_equals_scikit_learns_on_standardised_features_with_a_constant_of_100(count, dim):
    vectors, labels = shots_of(count, dim)
    standardised = (vectors - vectors.mean(0)) / (vectors.std(0, correction=0) + 1e-5)
    design = torch.cat([standardised, torch.full((count, 1), 100.0)], 1)
    targets = 2 * F.one_hot(labels, 4) - 1
    reference = SklearnRidge(alpha=1024.0, fit_intercept=False, solver="cholesky").fit(design, targets)
    ridge = fit_ridge(vectors, labels, 4)
    torch.testing.assert_close(ridge.weight, torch.from_numpy(reference.coef_.T), atol=1e-10, rtol=1e-8)
    expected = torch.from_numpy(reference.predict(design))
    torch.testing.assert_close(ridge.decide(vectors), expected, atol=1e-9, rtol=0)
    assert torch.equal(ridge.predict(vectors), expected.argmax(1))


@pytest.mark.parametrize(("count", "dim"), [(200, 12), (20, 64)])
def test_ridge_solves_the_normal_equations(count, dim):
    vectors, labels = shots_of(count, dim)
    ridge = fit_ridge(vectors, labels, 4, l2=3.0)
    design = torch.cat([(vectors - ridge.mean) / ridge.std, torch.full((count, 1), 100.0)], 1)
    targets = 2.0 * F.one_hot(labels, 4).double() - 1
    left = (design.T @ design + 3.0 * torch.eye(dim + 1)) @ ridge.weight
    torch.testing.assert_close(left, design.T @ targets, atol=1e-6, rtol=1e-9)


def test_a_constant_feature_is_harmless():
    vectors, labels = shots_of(20, 8)
    vectors[:, 3] = 5.0
    assert torch.isfinite(fit_ridge(vectors, labels, 4).weight).all()


def test_float32_features_are_computed_in_float64():
    vectors, labels = shots_of(200, 12)
    low, high = (fit_ridge(rounded, labels, 4) for rounded in (vectors.float(), vectors.float().double()))
    assert torch.equal(low.weight, high.weight)


def test_shots_are_as_many_of_every_class_nested_and_a_function_of_the_seed():
    labels = torch.arange(120) % 3
    few, many = draw_shots(labels, 5, seed=0), draw_shots(labels, 25, seed=0)
    assert labels[many].bincount().tolist() == [25, 25, 25]
    assert set(few.tolist()) < set(many.tolist())
    assert len(set(many.tolist())) == 75
    assert torch.equal(few, draw_shots(labels, 5, seed=0))
    assert not torch.equal(few, draw_shots(labels, 5, seed=1))


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(UserError, match=r"class 1 has 2: choose at most 2 shots"):
        draw_shots(torch.tensor([0, 0, 0, 1, 1]), 3, seed=0)


def test_more_shots_classify_better_and_every_seed_is_reported():
    train, test = clusters(400, spread=1.5), clusters(300, spread=1.5, split="test")
    results = fewshot(train, test, seeds=(0, 1, 2, 3))
    for pooling in ("cls", "avg"):
        accuracies = [results[pooling][shots].accuracy for shots in (1, 5, 10, 25)]
        assert accuracies[0] + 0.1 < accuracies[3]
        assert accuracies[3] > 0.8
        one_shot = results[pooling][1]
        assert len(set(one_shot.per_seed)) > 1
        assert one_shot.accuracy == pytest.approx(sum(one_shot.per_seed) / 4)
        assert one_shot.setting == {"shots": 1, "l2": 1024.0}
        assert one_shot.num_images == 300


def test_what_is_said_of_an_image_does_not_depend_on_the_other_test_images():
    train, test = clusters(200, spread=1.5), clusters(100, spread=1.5, split="test")
    first = test.labels < 2  # of other classes than the rest: their means are far apart
    parts = [test.subset(ids.nonzero()[:, 0]) for ids in (first, ~first)]
    whole, *halves = (fewshot(train, part, shots=[5], seeds=[0])["avg"][5].accuracy for part in (test, *parts))
    assert whole == pytest.approx(sum(halves) / 2)
    assert 0.3 < whole < 1


def test_only_the_shots_are_seen():
    train, test = clusters(400), clusters(100, split="test")
    ids = draw_shots(train.labels, 5, seed=7)
    expected = fewshot(train, test, shots=[5], seeds=[7])["avg"][5]
    blank = torch.ones(400, dtype=torch.bool)
    blank[ids] = False
    train.pooled["avg"][blank] = float("nan")
    assert fewshot(train, test, shots=[5], seeds=[7])["avg"][5] == expected
