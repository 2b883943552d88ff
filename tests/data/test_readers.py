"""The keys that everything random is drawn from."""

from itertools import product

import pytest
import torch

from vitmae.data.readers import batch_key, sample_keys

IMAGES = torch.tensor([5, 6])


def test_a_key_tells_seeds_epochs_images_and_repeats_apart():
    drawn = [sample_keys(seed, epoch, IMAGES, 2) for seed, epoch in product((0, 1), (0, 1))]
    held_out = [sample_keys(seed, None, IMAGES) for seed in (0, 1)]
    assert len(torch.cat([*drawn, *held_out]).unique()) == 4 * 4 + 2 * 2


def test_the_key_of_a_batch_tells_seeds_epochs_and_batches_apart():
    keys = {batch_key(seed, epoch, IMAGES[first:]) for seed, epoch, first in product((0, 1), (None, 0, 1), (0, 1))}
    assert len(keys) == 2 * 3 * 2


@pytest.mark.parametrize(
    ("seed", "epoch", "sample", "batch"),
    [
        (0, None, 5844622144741198507, 7593529814007672811),
        (1, None, -4005463305026622013, -4138722640415159622),
        (0, 0, -2903403269767141518, -8359267919630682417),
        (0, 1, 8184871859962948878, 7479997719495804050),
        (1, 0, 5727069593264518063, 5447359306315196361),
    ],
)
def test_keys_are_the_same_in_every_version(seed, epoch, sample, batch):
    assert sample_keys(seed, epoch, IMAGES)[0] == sample
    assert batch_key(seed, epoch, IMAGES) == batch
