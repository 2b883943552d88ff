from itertools import islice

import numpy as np
import pytest

from vitmae.data.samplers import OrderedRequests, Request, ShuffledRequests
from vitmae.errors import UserError


def epoch(**settings):
    return list(ShuffledRequests(**{"count": 103, "batch_size": 8, "seed": 0} | settings))


def rows(requests):
    return np.concatenate([request.indices for request in requests])


def test_an_epoch_shows_no_image_twice():
    assert len(set(rows(epoch()).tolist())) == 12 * 8


def test_the_last_smaller_batch_holds_what_is_left():
    requests = epoch(drop_last=False)
    assert [len(request.indices) for request in requests] == [8] * 12 + [7]
    assert sorted(rows(requests).tolist()) == list(range(103))


def test_every_epoch_has_its_own_order():
    requests = ShuffledRequests(103, 8, seed=0)
    first, second = list(requests), list(requests)
    assert (first[0].epoch, second[0].epoch) == (0, 1)
    assert (rows(first) != rows(second)).any()


def test_every_seed_has_its_own_order():
    assert (rows(epoch(seed=0)) != rows(epoch(seed=1))).any()


def test_the_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(rows(epoch(batch_size=8)), rows(epoch(batch_size=4))[: 12 * 8])


@pytest.mark.parametrize("drop_last", [True, False])
def test_two_ranks_see_together_what_one_process_with_twice_the_batch_sees(drop_last):
    one = epoch(batch_size=16, drop_last=drop_last)
    ranks = [epoch(batch_size=8, rank=rank, world=2, drop_last=drop_last) for rank in range(2)]
    assert len(one) == len(ranks[0]) == len(ranks[1])
    for whole, *halves in zip(one, *ranks, strict=True):
        assert {len(half.indices) for half in halves} == {len(whole.indices) // 2}
        assert set(whole.indices) >= set(rows(halves))
        assert len(set(rows(halves))) == len(whole.indices) // 2 * 2


def test_an_iteration_starts_where_it_is_told_to():
    whole = epoch(position=lambda: (3, 0))
    rest = epoch(position=lambda: (3, 5 * 8))
    assert len(rest) == len(whole) - 5
    for ours, theirs in zip(whole[5:], rest, strict=True):
        assert ours.epoch == theirs.epoch == 3
        np.testing.assert_array_equal(ours.indices, theirs.indices)


def test_the_length_is_of_a_whole_epoch_wherever_an_iteration_starts():
    assert len(ShuffledRequests(103, 8, seed=0, position=lambda: (3, 5 * 8))) == 12


def test_the_place_is_asked_for_only_when_the_first_batch_is():
    asked = []
    iterator = iter(ShuffledRequests(103, 8, seed=0, position=lambda: asked.append(1) or (0, 0)))
    assert not asked
    next(iterator)
    assert asked


def test_repeats_keep_the_rows_of_a_batch_and_of_an_epoch():
    requests = epoch(count=96, repeats=4)
    assert len(requests) == 96 // 8
    assert all(len(request.indices) * request.repeats == 8 for request in requests)
    assert len(set(rows(requests).tolist())) == 96 // 4


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 18, 103])
@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_shows_every_image_once_over_all_ranks(count, world):
    if count < world:
        return
    ranks = [OrderedRequests(count, 4, rank=rank, world=world) for rank in range(world)]
    assert sorted(np.concatenate([rows(rank) for rank in ranks]).tolist()) == list(range(count))
    assert all(0 < len(request.indices) <= 4 for rank in ranks for request in rank)


@pytest.mark.parametrize("count", range(2, 40))
def test_all_ranks_evaluate_the_same_number_of_batches(count):
    lengths = {len(OrderedRequests(count, 4, rank=rank, world=2)) for rank in range(2)}
    assert len(lengths) == 1


def test_evaluation_is_asked_for_in_order_and_without_an_epoch():
    assert [request.epoch for request in OrderedRequests(5, 2)] == [None] * 3
    assert rows(OrderedRequests(5, 2)).tolist() == [0, 1, 2, 3, 4]


def test_images_that_cannot_be_shared_are_refused_on_every_rank():
    for rank in range(2):
        with pytest.raises(UserError, match=r"batch_size"):
            OrderedRequests(3, 1, rank=rank, world=2)


def test_a_request_is_plain_enough_to_be_sent():
    request = next(islice(ShuffledRequests(103, 8, seed=0), 1))
    assert isinstance(request, Request)
    assert type(request.indices) is np.ndarray
    assert request.indices.dtype == np.int64
