import copy
from dataclasses import replace

import pytest
import torch
from timm.optim.lars import Lars
from torch import nn
from torch.nn import functional as F

from tests.probes.parts import clusters, permuted_labels
from vitmae.errors import UserError
from vitmae.probes import linear as linear_module
from vitmae.probes.confidence import wilson_interval
from vitmae.probes.features import Features
from vitmae.probes.head_training import Sweep, warmup_cosine
from vitmae.probes.linear import SWEEP, LinearHeads, choose_and_test, fit_heads, linear
from vitmae.randomness import generator

BASE_LRS = (0.3, 3.0, 30.0)


def stream(steps=12, batch=32, poolings=2, dim=6, num_classes=3):
    """Batches of features far from standardised, and labels."""
    for step in range(steps):
        features = torch.randn(poolings, batch, dim, generator=generator(step)) * 3 + 5
        yield features, torch.randint(num_classes, (batch,), generator=generator(step, "labels"))


def heads_for(dim=6, num_classes=3, base_lrs=BASE_LRS):
    return LinearHeads(dim, num_classes, poolings=("cls", "avg"), base_lrs=base_lrs)


def train_alone(pooling, base_lr, steps=12, warmup_steps=3):
    """The recipe as one would write it for a single head: batch norm, linear layer, LARS on the weight alone."""
    stack = heads_for()
    layer, norm = nn.Linear(6, 3), nn.BatchNorm1d(6, affine=False, eps=1e-6, momentum=None)
    layer.load_state_dict({"weight": stack.weight[0, 0].T, "bias": stack.bias[0, 0, 0]})
    groups = [{"params": [layer.weight], "always_adapt": True}, {"params": [layer.bias], "always_adapt": False}]
    optimizer = Lars(groups, lr=0.0, momentum=0.9, trust_coeff=0.001)
    for step, (features, labels) in enumerate(stream(steps)):
        for group in optimizer.param_groups:
            group["lr"] = base_lr * 32 / 256 * warmup_cosine(step, steps, warmup_steps)
        optimizer.zero_grad()
        F.cross_entropy(layer(norm(features[pooling])), labels).backward()
        optimizer.step()
    return layer, norm


def test_each_head_of_a_stack_learns_what_it_would_learn_alone():
    heads = heads_for()
    fit_heads(heads, stream(), batch_size=32, steps=12, warmup_steps=3)
    for pooling in range(2):
        for index, base_lr in enumerate(BASE_LRS):
            layer, norm = train_alone(pooling, base_lr)
            torch.testing.assert_close(heads.weight[pooling, index], layer.weight.T, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(heads.bias[pooling, index, 0], layer.bias, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(heads.norm.running_mean.view(2, 6)[pooling], norm.running_mean)
    assert not heads.training


def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(monkeypatch):
    whole, parts = heads_for(), heads_for()
    fit_heads(whole, stream(), batch_size=32, steps=12, warmup_steps=3)
    monkeypatch.setattr("vitmae.probes.linear._LOGITS", 5 * 2 * 3 * 3)
    assert parts.rows_at_a_time() == 5
    fit_heads(parts, stream(), batch_size=32, steps=12, warmup_steps=3)
    torch.testing.assert_close(whole.weight, parts.weight)
    torch.testing.assert_close(whole.bias, parts.bias)


def test_in_eval_mode_the_batch_norm_uses_the_statistics_of_all_that_it_was_trained_on():
    heads = heads_for()
    fit_heads(heads, stream(), batch_size=32, steps=12, warmup_steps=3)
    seen = torch.cat([features for features, _ in stream()], 1)
    normalized = heads.normalize(seen)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(1), torch.ones(2, 6), atol=0.05, rtol=0)
    torch.testing.assert_close(heads.normalize(seen[:, :1]), normalized[:, :1])


def test_separable_features_are_learned_in_every_pooling():
    results = linear(
        clusters(400), clusters(200, split="val"), clusters(200, split="test"), sweep=replace(SWEEP, epochs=30)
    )
    for pooling in ("cls", "avg"):
        result = results[pooling]
        assert result.accuracy > 0.97
        assert result.interval == wilson_interval(result.accuracy, 200)
        assert (result.pooling, result.num_images, result.per_seed) == (pooling, 200, (result.accuracy,))


def test_the_reported_learning_rate_is_the_best_on_the_validation_split_and_the_head_is_its_own():
    train, val = clusters(400, spread=1.2), clusters(200, spread=1.2, split="val")
    test = clusters(200, spread=1.2, split="test")
    results = linear(train, val, test, sweep=replace(SWEEP, base_lrs=BASE_LRS, epochs=15))
    for pooling in ("cls", "avg"):
        validation = results[pooling].validation
        assert tuple(validation) == BASE_LRS
        assert len(set(validation.values())) > 1
        best = max(validation, key=lambda base_lr: validation[base_lr])
        assert results[pooling].setting == {"base_lr": best}
        alone = linear(train, val, test, sweep=replace(SWEEP, base_lrs=[best], epochs=15))
        assert alone[pooling].accuracy == results[pooling].accuracy
        assert alone[pooling].validation == {best: validation[best]}


def test_the_choice_never_sees_the_test_split():
    train, val = clusters(200, spread=1.2), clusters(100, spread=1.2, split="val")
    test = clusters(100, spread=1.2, split="test")
    told = linear(train, val, test, sweep=replace(SWEEP, base_lrs=BASE_LRS, epochs=15))
    fooled = linear(train, val, permuted_labels(test), sweep=replace(SWEEP, base_lrs=BASE_LRS, epochs=15))
    for pooling in ("cls", "avg"):
        assert fooled[pooling].setting == told[pooling].setting
        assert fooled[pooling].validation == told[pooling].validation
        assert fooled[pooling].accuracy < told[pooling].accuracy - 0.2


def test_each_pooling_is_judged_by_its_own_head():
    heads = LinearHeads(1, 2, poolings=("cls", "avg"), base_lrs=(1.0, 2.0))
    heads.eval()
    vectors = torch.tensor([[-1.0], [1.0]])
    labels = torch.tensor([0, 1])
    # cls: the second head is right; avg: the first is
    right, wrong = torch.tensor([[-1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
    heads.weight.data = torch.stack([torch.stack([wrong, right]), torch.stack([right, wrong])])
    features = Features({"avg": vectors, "cls": vectors}, labels)
    results = choose_and_test(heads, features, features)
    assert results["cls"].setting == {"base_lr": 2.0}
    assert results["avg"].setting == {"base_lr": 1.0}
    assert results["cls"].accuracy == results["avg"].accuracy == 1


def test_equal_seeds_give_equal_results_and_training_changes_no_feature():
    train, val, test = clusters(100), clusters(50, split="val"), clusters(50, split="test")
    before = copy.deepcopy(train.pooled)
    short = replace(SWEEP, base_lrs=BASE_LRS, epochs=4, warmup_epochs=1, batch_size=30)
    assert linear(train, val, test, sweep=short) == linear(train, val, test, sweep=short)
    assert all(torch.equal(before[pooling], train.pooled[pooling]) for pooling in before)


def test_first_weights_and_order_follow_the_seed(monkeypatch):
    starts, part = [], clusters(40)

    def record(heads, batches, **settings):
        starts.append((heads.weight.detach().clone(), torch.cat([features[0] for features, _ in batches])))

    monkeypatch.setattr(linear_module, "fit_heads", record)
    for seed in (0, 0, 1):
        linear(part, part, part, sweep=Sweep([1.0], 2, 1, 20), seed=seed)
    for one, same, other in zip(*starts, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_a_batch_holds_all_images_where_there_are_no_more(monkeypatch):
    settings, part = [], clusters(40)
    monkeypatch.setattr(linear_module, "fit_heads", lambda heads, batches, **given: settings.append(given))
    for most in (100, 40, 30):
        linear(part, part, part, sweep=Sweep([1.0], 4, 1, most))
    assert [given["batch_size"] for given in settings] == [40, 40, 30]
    assert {(given["steps"], given["warmup_steps"]) for given in settings} == {(4, 1)}


def test_of_learning_rates_that_do_equally_well_the_first_is_taken():
    heads = LinearHeads(12, 4, poolings=("cls", "avg"), base_lrs=(0.3, 3.0, 30.0)).eval()
    results = choose_and_test(heads, clusters(20), clusters(20))
    assert {result.setting["base_lr"] for result in results.values()} == {0.3}


def test_half_precision_features_serve_as_well():
    sets = [clusters(100, split=split) for split in ("train", "val", "test")]
    half = [Features({name: x.half() for name, x in part.pooled.items()}, part.labels) for part in sets]
    assert linear(*half, sweep=replace(SWEEP, epochs=30))["avg"].accuracy > 0.95


def test_bad_settings_are_refused():
    part = clusters(20)
    unlabelled = Features(part.pooled, torch.full((20,), -1))
    with pytest.raises(UserError, match="a probe needs a learning rate"):
        linear(part, part, part, sweep=replace(SWEEP, base_lrs=[]))
    with pytest.raises(UserError, match="fewer warm-up epochs"):
        linear(part, part, part, sweep=replace(SWEEP, epochs=5))
    with pytest.raises(UserError, match="≥ 2 training images"):
        linear(part.subset(torch.tensor([0])), part, part)
    for sets in ((unlabelled, part, part), (part, unlabelled, part), (part, part, unlabelled)):
        with pytest.raises(UserError, match="have no label"):
            linear(*sets, sweep=replace(SWEEP, epochs=2, warmup_epochs=1))


def test_first_weights_are_normal_and_not_cut_at_two_deviations():
    """The recipe's `trunc_normal_(std=0.01)` cuts at the values -2 and 2, which is 200 deviations away."""
    weight = LinearHeads(512, 100, poolings=("cls",), base_lrs=(1.0,)).weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (weight.abs() > 0.02).float().mean().item() == pytest.approx(0.0455, abs=0.005)
