import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.probes.parts import clusters, permuted_labels
from vitmae.errors import UserError
from vitmae.probes.features import Features, stratified_split
from vitmae.probes.logistic import logistic

CS = (1e-4, 1e-2, 1.0)


def scikit_learns(train, test, c):
    """Predictions of scikit-learn on features standardised by hand."""
    mean, std = train.pooled["avg"].double().mean(0), train.pooled["avg"].double().std(0, correction=0)
    model = LogisticRegression(C=c, max_iter=1000)
    model.fit(((train.pooled["avg"].double() - mean) / std).numpy(), train.labels.numpy())
    return torch.from_numpy(model.predict(((test.pooled["avg"].double() - mean) / std).numpy()))


def test_accuracy_equals_scikit_learns_fit_of_the_whole_training_set_with_the_chosen_c():
    train, test = clusters(200, spread=1.2), clusters(150, spread=1.2, split="test")
    result = logistic(train, test, cs=CS)["avg"]
    predictions = scikit_learns(train, test, result.setting["C"])
    assert result.accuracy == (predictions == test.labels).double().mean()
    assert result.num_images == 150


def test_c_is_the_best_on_a_split_of_the_training_set():
    train, test = clusters(200, spread=1.2), clusters(150, spread=1.2, split="test")
    result = logistic(train, test, cs=CS, seed=3)["avg"]
    fitted, held_out = (train.subset(ids) for ids in stratified_split(train.labels, 0.2, 3, "logistic"))
    for c in CS:
        expected = (scikit_learns(fitted, held_out, c) == held_out.labels).double().mean()
        assert result.validation[c] == expected
    assert result.setting["C"] == max(CS, key=lambda c: result.validation[c])


def test_of_equally_good_penalties_the_strongest_is_taken():
    train, test = clusters(200, spread=0.01), clusters(50, spread=0.01, split="test")
    result = logistic(train, test, cs=(1.0, 0.1))["avg"]
    assert set(result.validation.values()) == {1.0}
    assert result.setting["C"] == 0.1


def test_the_choice_never_sees_the_test_split():
    train, test = clusters(200, spread=1.2), clusters(150, spread=1.2, split="test")
    told, fooled = logistic(train, test, cs=CS), logistic(train, permuted_labels(test), cs=CS)
    for pooling in ("cls", "avg"):
        assert fooled[pooling].setting == told[pooling].setting
        assert fooled[pooling].validation == told[pooling].validation
        assert fooled[pooling].accuracy < told[pooling].accuracy - 0.2


def test_labels_with_gaps_and_a_class_of_one_image_are_no_obstacle():
    train = clusters(60)
    labels = train.labels * 5
    labels[0] = 3
    result = logistic(Features(train.pooled, labels), Features(train.pooled, labels), cs=[1.0])["avg"]
    assert result.accuracy > 0.9


def test_a_fit_stopped_early_is_used_without_a_warning():
    train = clusters(60)
    assert logistic(train, train, cs=[1e3], max_iter=2)["avg"].accuracy > 0.5


def test_sets_that_cannot_be_split_are_refused():
    one_each = Features({"avg": torch.randn(2, 4)}, torch.tensor([0, 1]))
    with pytest.raises(UserError, match="two classes with two training images"):
        logistic(one_each, one_each)
    one_class = Features({"avg": torch.randn(9, 4)}, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(UserError, match="two classes with two training images"):
        logistic(one_class, one_class)
    assert numpy.isfinite(logistic(clusters(8), clusters(8))["avg"].accuracy)
