from dataclasses import replace

import pytest
import torch
from sklearn.metrics import jaccard_score

from tests.probes.parts import starts_of_training
from vitmae.errors import UserError
from vitmae.probes import dense as dense_module
from vitmae.probes.dense import DenseHead, SegmentedSet, dense, mean_iou, overlaps, pixel_loss
from vitmae.probes.features import Features
from vitmae.probes.head_training import Standardize, Sweep
from vitmae.randomness import generator

SWEEP = Sweep((1e-4, 1.0), epochs=15, warmup_epochs=1, batch_size=16)


def halves(count, split="train", num_classes=3, dim=6, pixels=4):
    """Images of which the left two patch columns show one class and the right two another, told by the tokens."""
    directions = torch.randn(num_classes, dim, generator=generator("directions"))
    classes = torch.randint(num_classes, (count, 2), generator=generator(split))
    grid = classes[:, None, :].repeat_interleave(2, 2).expand(count, 2, 4)  # (M, grid_h, grid_w)
    noise = torch.randn(count, 8, dim, generator=generator(split, "noise"))
    patches = directions[grid.flatten(1)] + 0.3 * noise
    masks = grid.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2).to(torch.uint8)
    return SegmentedSet(Features({}, torch.full((count,), -1), patches, (2, 4)), masks)


def sets():
    return halves(60), halves(30, "val"), halves(30, "test")


def head_for(part, num_classes=3, **changes):
    standardize = Standardize(part.features.patches)
    sizes = {"grid_size": (2, 4), "mask_size": part.masks.shape[1:]}
    return DenseHead(standardize, num_classes, **sizes | changes)


def test_what_tokens_tell_is_found_at_its_pixels():
    result = dense(*sets(), sweep=SWEEP)
    # logits between two patches are mixed, which is why a border can be a pixel off
    assert result.mean_iou > 0.85
    assert result.interval[0] < result.mean_iou < result.interval[1]
    assert result.num_images == 30


def test_logits_of_a_patch_lie_over_its_pixels_also_on_a_rectangle():
    part = halves(1)
    head = head_for(part)
    tokens = torch.zeros(1, 8, 6)
    tokens[0, 6] = 1.0  # second row, third column
    logits = (head(tokens) - head(torch.zeros(1, 8, 6))).abs().sum(1)[0]  # (8, 16)
    assert logits.shape == (8, 16)
    row, column = divmod(int(logits.argmax()), 16)
    assert 4 <= row < 8
    assert 8 <= column < 12
    assert torch.equal(head_for(part, mask_size=(2, 4))(tokens).flatten(2).mT, head.standardize(tokens) @ head.weight.T)


def test_the_pixel_in_the_middle_of_a_patch_has_the_logits_of_its_token():
    part = halves(5)
    head = head_for(part, mask_size=(6, 12))
    tokens = part.features.patches
    expected = head.standardize(tokens) @ head.weight.T + head.bias  # (5, 8, 3)
    torch.testing.assert_close(head(tokens)[:, :, 1::3, 1::3].flatten(2).mT, expected)


def test_intersection_over_union_equals_scikit_learns_with_ignored_pixels_left_out():
    part = halves(70)
    part.masks[:, :3] = 255
    head = head_for(part)
    intersection, union = overlaps(head, part)
    predicted = head(part.features.patches).argmax(1)
    valid = part.masks != 255
    expected = jaccard_score(part.masks[valid], predicted[valid], average=None)
    torch.testing.assert_close(intersection.sum(0) / union.sum(0), torch.from_numpy(expected).float())
    assert mean_iou(intersection, union) == pytest.approx(expected.mean())
    right = (predicted == part.masks) & valid
    assert torch.equal(intersection.sum(1), right.sum((1, 2)))
    one = SegmentedSet(part.features.subset(torch.tensor([66])), part.masks[66:67])
    assert torch.equal(overlaps(head, one)[1][0], union[66])


def test_a_class_that_no_pixel_shows_is_left_out_of_the_mean():
    assert mean_iou(torch.tensor([[3, 0]]), torch.tensor([[4, 0]])) == 0.75


def test_a_class_that_only_the_test_split_has_counts_as_missed():
    train, val, test = sets()
    test.masks[:, 0, 0] = 4
    known = dense(*sets(), sweep=SWEEP).mean_iou  # of 3 classes; class 3 occurs nowhere
    assert dense(train, val, test, sweep=SWEEP).mean_iou == pytest.approx(known * 3 / 4, abs=0.02)


def test_ignored_pixels_teach_nothing():
    logits = torch.randn(2, 3, 4, 4, generator=generator(0), requires_grad=True)
    masks = torch.randint(3, (2, 4, 4), generator=generator(1)).to(torch.uint8)
    masks[0] = 255
    loss = pixel_loss(logits, masks)
    loss.backward()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[1:], masks[1:].long()))
    assert logits.grad[0].abs().sum() == 0
    assert pixel_loss(logits, torch.full_like(masks, 255)) == 0


def test_the_reported_learning_rate_is_the_best_on_the_validation_split():
    result = dense(*sets(), sweep=SWEEP)
    assert result.validation[1.0] > result.validation[1e-4]
    assert result.setting == {"base_lr": 1.0}
    assert dense(*sets(), sweep=replace(SWEEP, base_lrs=[1.0])).mean_iou == result.mean_iou


def test_the_choice_never_sees_the_test_split():
    train, val, test = sets()
    told = dense(train, val, test, sweep=SWEEP)
    fooled = dense(train, val, SegmentedSet(test.features, test.masks.flip(0)), sweep=SWEEP)
    assert (fooled.setting, fooled.validation) == (told.setting, told.validation)
    assert fooled.mean_iou < told.mean_iou - 0.2


def test_first_weights_and_order_follow_the_seed(monkeypatch):
    starts = starts_of_training(monkeypatch, dense_module, lambda seed: dense(*sets(), seed=seed))
    for one, same, other in starts:
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_bad_sets_are_refused():
    train, val, test = sets()
    with pytest.raises(UserError, match="one mask, all of one size"):
        dense(train, val, SegmentedSet(test.features, test.masks[:, :4]))
    with pytest.raises(UserError, match="one mask, all of one size"):
        dense(SegmentedSet(train.features, train.masks[:5]), val, test)
    with pytest.raises(UserError, match="all pixels of the masks are 255"):
        dense(train, SegmentedSet(val.features, torch.full_like(val.masks, 255)), test)
    with pytest.raises(UserError, match="extract them with patches"):
        dense(SegmentedSet(Features({}, torch.zeros(60)), train.masks), val, test)
    with pytest.raises(UserError, match="have no grid size"):
        dense(SegmentedSet(Features({}, torch.zeros(60), train.features.patches), train.masks), val, test)
