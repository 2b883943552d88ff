import pytest
import torch
from torch import nn

from vitmae.errors import UserError
from vitmae.probes.head_training import (
    Standardize,
    Sweep,
    epoch_batches,
    fit_on_tokens,
    predict_on_tokens,
    warmup_cosine,
)
from vitmae.randomness import generator


def test_the_learning_rate_rises_linearly_from_zero_and_falls_like_a_cosine_to_zero():
    rates = [warmup_cosine(step, 110, 10) for step in range(110)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[35] == pytest.approx((1 + 2**-0.5) / 2)
    assert rates[10:] == sorted(set(rates[10:]), reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_without_warm_up_the_first_step_has_the_peak():
    assert warmup_cosine(0, 10, 0) == 1


@pytest.mark.parametrize("warmup_epochs", [10, 11, -1])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup_epochs):
    with pytest.raises(UserError, match="choose fewer warm-up epochs"):
        Sweep([0.1], 10, warmup_epochs, 8)


def test_a_sweep_without_a_learning_rate_is_refused():
    with pytest.raises(UserError, match="needs a learning rate"):
        Sweep([], 10, 1, 8)


def test_an_epoch_shows_no_image_twice_and_each_epoch_has_its_own_order():
    epochs = torch.stack(list(epoch_batches(23, 5, 8, "key"))).view(8, 20)
    assert all(len(epoch.unique()) == 20 for epoch in epochs)
    assert len(epochs.unique(dim=0)) == 8
    assert torch.equal(epochs.unique(), torch.arange(23))


def test_the_order_is_a_function_of_the_key():
    def order(*key):
        return torch.cat(list(epoch_batches(23, 5, 2, *key)))

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


class Scale(nn.Module):
    """One weight per feature, summed over the tokens."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.sizes = []

    def forward(self, tokens):
        self.sizes.append(tokens.shape)
        return (tokens * self.weight).sum((1, 2))


def squared(outputs, targets):
    return (outputs - targets).square().mean()


def sweep(base_lrs, epochs=3, warmup_epochs=1, batch_size=8):
    return Sweep(base_lrs, epochs, warmup_epochs, batch_size)


def random_tokens(images=20):
    return torch.randn(images, 3, 4, generator=generator(1)), torch.randn(images, generator=generator(2))


def test_each_head_of_a_sweep_learns_what_it_would_learn_alone():
    patches, targets = random_tokens()
    together = [Scale(), Scale()]
    fit_on_tokens(together, patches, targets, squared, sweep([1.0, 10.0]), 0)
    for head, base_lr in zip(together, [1.0, 10.0], strict=True):
        alone = Scale()
        fit_on_tokens([alone], patches, targets, squared, sweep([base_lr]), 0)
        assert torch.equal(head.weight, alone.weight)
        assert not head.training
    assert not torch.equal(together[0].weight, together[1].weight)


def test_a_head_takes_the_steps_of_adamw_on_the_batches_of_each_epoch():
    patches, targets = random_tokens()
    head, reference = Scale(), Scale()
    fit_on_tokens([head], patches, targets, squared, sweep([10.0]), 0)
    optimizer = torch.optim.AdamW(reference.parameters(), weight_decay=0.01)
    for step, ids in enumerate(epoch_batches(20, 8, 3, 0)):
        optimizer.param_groups[0]["lr"] = 10 * 8 / 256 * warmup_cosine(step, 6, 2)
        reference.weight.grad = torch.autograd.grad(squared(reference(patches[ids]), targets[ids]), reference.weight)[0]
        optimizer.step()
    torch.testing.assert_close(head.weight, reference.weight)


def test_the_peak_learning_rate_is_scaled_by_the_images_of_a_batch():
    patches, targets = random_tokens()
    steps = []
    for batch_size, base_lr in ((8, 1.0), (4, 2.0)):
        head = Scale()
        # AdamW's first step has the length of the learning rate, and no warm-up makes it the peak
        once = sweep([base_lr], epochs=1, warmup_epochs=0, batch_size=batch_size)
        fit_on_tokens([head], patches[:batch_size], targets[:batch_size], squared, once, 0)
        steps.append((head.weight - 1).abs().mean().item())
    assert steps == pytest.approx([8 / 256] * 2, rel=0.02)


def test_a_batch_larger_than_the_set_is_the_set():
    patches, targets = random_tokens(5)
    head = Scale()
    fit_on_tokens([head], patches, targets, squared, sweep([1.0]), 0)
    assert head.sizes == [(5, 3, 4)] * 3


def test_predictions_come_in_order_and_without_gradient(monkeypatch):
    patches, _ = random_tokens()
    monkeypatch.setattr("vitmae.probes.head_training.ROWS", 6)
    outputs = torch.cat(list(predict_on_tokens(Scale(), patches.half())))
    torch.testing.assert_close(outputs, patches.half().float().sum((1, 2)))
    assert not outputs.requires_grad


def test_tokens_are_standardised_by_the_mean_and_deviation_of_the_training_set(monkeypatch):
    patches = random_tokens()[0] * 3 + 5
    patches[:, :, 2] = 7.0
    monkeypatch.setattr("vitmae.probes.head_training.ROWS", 6)
    out = Standardize(patches)(patches)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.flatten(0, 1).std(0, correction=0), torch.tensor([1.0, 1, 0, 1]), atol=1e-4, rtol=0)
    assert list(Standardize(patches).parameters()) == []
