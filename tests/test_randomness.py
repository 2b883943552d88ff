import pytest
import torch

from vitmae.randomness import fold, fold_each, fold_indices, generator, permutation, seed_torch, uniform

KNOWN = [0.2705659866333008, 0.506443202495575, 0.6723672151565552]


def test_folding_a_tensor_of_keys_is_folding_each_key():
    keys = torch.tensor([fold(1, 2), fold(3, 4)])
    assert fold_each(keys, "crop", 5).tolist() == [fold(1, 2, "crop", 5), fold(3, 4, "crop", 5)]
    assert fold_indices(fold(9, "x"), torch.arange(6)).tolist() == [fold(9, "x", i) for i in range(6)]


def test_the_parts_of_a_key_and_their_order_matter():
    assert len({fold(1, 2), fold(2, 1), fold(1), fold(1, 2, 0), fold("a"), fold("b"), fold(1, "a")}) == 7


def test_uniform_numbers_look_uniform_within_and_across_neighbouring_keys():
    drawn = uniform(fold_indices(0, torch.arange(2000)), 50)
    assert 0 <= drawn.min() < 1e-3
    assert 0.999 < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.005
    assert abs(drawn.var() - 1 / 12) < 0.002
    correlation = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.02


def test_a_draw_does_not_depend_on_the_others_in_the_batch_nor_on_their_number():
    keys = fold_indices(3, torch.arange(10))
    assert torch.equal(uniform(keys, 20)[4:6, :7], uniform(keys[4:6], 7))


def test_generators_and_permutations_are_functions_of_their_key():
    assert torch.equal(permutation(100, 1, "epoch"), permutation(100, 1, "epoch"))
    assert not torch.equal(permutation(100, 1), permutation(100, 2))
    assert torch.rand(3, generator=generator(5)).equal(torch.rand(3, generator=generator(5)))


def test_known_values_stay_so_that_old_runs_can_be_continued():
    assert uniform(torch.tensor([fold(0, "mask")]), 3)[0].tolist() == KNOWN


@pytest.mark.parametrize("key", [0, 7, -3, fold(1, "mask"), -(2**62)])
def test_library_functions_draw_as_after_torchs_own_seeding(key):
    torch.manual_seed(key)
    wanted = torch.rand(5)
    seed_torch(key, torch.device("cpu"))
    assert torch.equal(torch.rand(5), wanted)


def test_seeding_leaves_nothing_behind():
    queued = len(torch.cuda._queued_calls)
    for key in range(10):
        seed_torch(key, torch.device("cpu"))
    assert len(torch.cuda._queued_calls) == queued
