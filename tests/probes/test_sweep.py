import pytest
import torch

from vitmae.errors import UserError
from vitmae.probes.sweep import check_schedule, epoch_batches, warmup_cosine


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
        check_schedule(10, warmup_epochs)


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
