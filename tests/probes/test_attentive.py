from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.probes.parts import clusters, marked_tokens, permuted_labels, starts_of_training
from vitmae.errors import UserError
from vitmae.probes import attentive as attentive_module
from vitmae.probes.attentive import AttentiveHead, attentive
from vitmae.probes.confidence import wilson_interval
from vitmae.probes.features import Features
from vitmae.probes.head_training import Standardize, Sweep
from vitmae.probes.logistic import logistic
from vitmae.randomness import generator

SWEEP = Sweep((1e-4, 3e-2), epochs=20, warmup_epochs=2, batch_size=64)


def sets(sizes=(300, 150, 150)):
    return [marked_tokens(size, split=split) for size, split in zip(sizes, ("train", "val", "test"), strict=True)]


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_the_head_equals_torchs_multi_head_attention_with_one_query(num_heads):
    tokens = torch.randn(5, 7, 8, generator=generator(0))
    standardize = Standardize(tokens)
    head = AttentiveHead(standardize, 3, num_heads)
    with torch.no_grad():
        head.query.mul_(100)  # far from uniform attention
    reference = nn.MultiheadAttention(8, num_heads, bias=False, batch_first=True)
    projections = [torch.eye(8), head.key.flatten(0, 1), head.value.flatten(0, 1)]
    reference.load_state_dict({"in_proj_weight": torch.cat(projections), "out_proj.weight": torch.eye(8)})
    query = head.query.flatten().expand(5, 1, 8)
    latent, attention = reference(query, standardize(tokens), standardize(tokens))
    assert attention.std() > 0.05
    torch.testing.assert_close(head(tokens), latent[:, 0] @ head.weight.T + head.bias, rtol=1e-4, atol=1e-6)


def test_every_weight_gets_a_gradient():
    tokens = torch.randn(5, 7, 8, generator=generator(0))
    head = AttentiveHead(Standardize(tokens), 3, 2)
    head(tokens).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


def test_a_class_that_one_token_tells_is_found_where_the_mean_is_not_enough():
    train, val, test = sets()
    result = attentive(train, val, test, sweep=SWEEP, num_heads=2)
    assert result.accuracy > 0.95
    assert result.accuracy > logistic(train, test)["avg"].accuracy + 0.05
    assert result.interval == wilson_interval(result.accuracy, 150)
    assert (result.num_images, result.pooling) == (150, "patches")


def test_the_reported_learning_rate_is_the_best_on_the_validation_split_and_the_head_is_its_own():
    train, val, test = sets()
    result = attentive(train, val, test, sweep=SWEEP, num_heads=2)
    assert result.validation[3e-2] > result.validation[1e-4]
    assert result.setting["base_lr"] == 3e-2
    alone = attentive(train, val, test, sweep=replace(SWEEP, base_lrs=[3e-2]), num_heads=2)
    assert alone.accuracy == result.accuracy


def test_the_choice_never_sees_the_test_split():
    train, val, test = sets()
    told = attentive(train, val, test, sweep=SWEEP, num_heads=2)
    fooled = attentive(train, val, permuted_labels(test), sweep=SWEEP, num_heads=2)
    assert (fooled.setting, fooled.validation) == (told.setting, told.validation)
    assert fooled.accuracy < told.accuracy - 0.2


def test_what_is_said_of_an_image_does_not_depend_on_the_other_test_images():
    train, val, test = sets((120, 30, 90))
    first = test.labels == 0
    parts = [test.subset(ids.nonzero()[:, 0]) for ids in (first, ~first)]
    sweep = Sweep([3e-2], epochs=6, warmup_epochs=1, batch_size=30)
    whole, *halves = (attentive(train, val, part, num_heads=2, sweep=sweep).accuracy for part in (test, *parts))
    assert whole == pytest.approx((halves[0] + 2 * halves[1]) / 3)
    assert 0.4 < whole < 1


def test_first_weights_and_order_follow_the_seed(monkeypatch):
    part = marked_tokens(20)
    starts = starts_of_training(
        monkeypatch, attentive_module, lambda seed: attentive(part, part, part, num_heads=2, seed=seed)
    )
    for one, same, other in starts:
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_heads_are_64_wide_unless_the_width_has_no_such_heads():
    def heads_of(width):
        part = Features({}, torch.arange(4) % 2, torch.randn(4, 2, width, generator=generator(0)), (1, 2))
        return attentive(part, part, part, sweep=Sweep([0.1], epochs=1, warmup_epochs=0, batch_size=256)).setting[
            "num_heads"
        ]

    assert [heads_of(width) for width in (64, 192, 100)] == [1, 3, 1]


def test_bad_settings_are_refused():
    part = marked_tokens(12)
    with pytest.raises(UserError, match="no 3 attention heads"):
        attentive(part, part, part, num_heads=3)
    with pytest.raises(UserError, match="extract them with patches"):
        attentive(clusters(12), part, part)
    with pytest.raises(UserError, match="have no label"):
        attentive(part, part, Features({}, torch.full((12,), -1), part.patches, part.grid_size))
