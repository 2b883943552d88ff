import pickle

import pytest
import torch

from vitmae.data.sources.shapes import CLASSES, Shapes
from vitmae.errors import UserError


def drawn(count=64, size=(32, 32), channels=3, **settings):
    return Shapes(**settings).load(None, size, channels).train.render(torch.arange(count))


def test_an_image_is_a_function_of_its_index():
    images, masks = drawn(200)
    train = Shapes().load(None, (32, 32), 3).train
    chosen = torch.tensor([150, 3, 77, 3])
    assert torch.equal(train.read(chosen), images[chosen])
    assert torch.equal(train.read_masks(chosen), masks[chosen])


def test_images_differ():
    assert len(drawn(200)[0].flatten(1).unique(dim=0)) == 200


def test_a_larger_set_begins_with_the_smaller_one():
    small, large = (Shapes(num_train=count).load(None, (16, 16), 3).train for count in (16, 1000))
    assert torch.equal(small.read(torch.arange(16)), large.read(torch.arange(16)))
    assert torch.equal(small.labels, large.labels[:16])


def test_splits_and_seeds_are_different_sets():
    splits = Shapes().load(None, (16, 16), 3)
    other = Shapes(seed=1).load(None, (16, 16), 3)
    sets = [images.read(torch.arange(8)) for images in (splits.train, splits.val, splits.test, other.train)]
    assert len(torch.cat(sets).flatten(1).unique(dim=0)) == 32


def test_classes_are_of_equal_size():
    assert Shapes(800).load(None, (8, 8), 3).train.labels.bincount().tolist() == [100] * len(CLASSES)


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("size", [(8, 8), (24, 40), (40, 24)])
def test_any_size_and_any_number_of_channels_can_be_drawn(size, channels):
    images, masks = drawn(8, size, channels)
    assert images.shape == (8, channels, *size)
    assert masks.shape == (8, *size)
    assert images.dtype == masks.dtype == torch.uint8


def test_the_same_scene_is_shown_at_every_resolution():
    small, small_masks = drawn(64, (32, 32))
    large, large_masks = drawn(64, (128, 128))
    shrunk = torch.nn.functional.avg_pool2d(large.float(), 4)
    assert (shrunk - small).abs().mean() < 6
    assert (large_masks[:, 2::4, 2::4] == small_masks).float().mean() > 0.97


def test_every_image_shows_its_class_as_the_largest_shape():
    _, masks = drawn(400)
    for label, mask in zip((torch.arange(400) % len(CLASSES)).tolist(), masks, strict=True):
        areas = mask.flatten().bincount(minlength=len(CLASSES) + 1)[1:]
        assert areas[label] > 20
        assert len(areas.nonzero()) <= 2


def test_about_every_second_image_shows_a_second_shape():
    _, masks = drawn(400)
    second = sum(len(mask.unique()) == 3 for mask in masks)
    assert 140 < second < 240


def test_shapes_can_be_told_from_the_ground_by_their_colour():
    images, masks = drawn(200)
    labels = torch.arange(200) % len(CLASSES)
    for image, mask, label in zip(images.float(), masks, labels, strict=True):
        inside = image[:, mask == label + 1].mean(1)
        outside = image[:, mask == 0].mean(1)
        assert (inside - outside).abs().max() > 20


def test_a_mask_ends_where_its_shape_ends():
    images, masks = drawn(160, (128, 128))
    nearer = []
    for image, mask, label in zip(images.float(), masks, (torch.arange(160) % len(CLASSES)).tolist(), strict=True):
        shape, ground = (mask == 1 + label).float()[None], (mask == 0).float()[None]
        rim = (shape - eroded(shape, 1))[0] > 0  # the outermost pixels of the shape
        rim &= (1 - eroded(1 - ground, 2))[0] > 0  # where it borders on the ground
        inside, outside = eroded(shape, 3)[0] > 0, ground[0] > 0
        seen, core, around = (image[:, part].mean(1) for part in (rim, inside, outside))
        nearer.append(bool((seen - core).norm() < (seen - around).norm()))
    assert sum(nearer) > 150


def eroded(mask, pixels):
    return -torch.nn.functional.max_pool2d(-mask, 2 * pixels + 1, stride=1, padding=pixels)


def test_every_class_has_an_outline_of_its_own():
    """Upright and centred shapes of two classes differ in a tenth of their pixels or more."""
    from vitmae.data.sources.shapes import _OUTLINES

    y, x = torch.meshgrid(torch.linspace(-1.1, 1.1, 64), torch.linspace(-1.1, 1.1, 64), indexing="ij")
    shapes = {name: _OUTLINES[name](x, y) < 0 for name in CLASSES}
    for name, shape in shapes.items():
        assert 0.15 < shape.float().mean() < 0.65, name
        assert not shape[0].any()
        assert not shape[:, 0].any()
    for one in CLASSES:
        for other in CLASSES:
            if one != other:
                union = (shapes[one] | shapes[other]).sum()
                assert (shapes[one] & shapes[other]).sum() < 0.9 * union, (one, other)


def test_a_set_is_sent_to_workers_without_its_images():
    assert len(pickle.dumps(Shapes(1000).load(None, (224, 224), 3).train)) < 20_000


def test_fewer_images_than_classes_are_refused():
    with pytest.raises(UserError, match=r"data\.source\.num_val=4: must be ≥ 8"):
        Shapes(num_val=4)
