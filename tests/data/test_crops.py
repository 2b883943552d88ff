import math
import random

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from vitmae.data.crops import (
    View,
    central_boxes,
    clipped_boxes,
    mirror,
    random_resized_boxes,
    resample,
    resize_box,
    resize_mask,
    shift,
)
from vitmae.randomness import fold_indices


def keys_of(count, key=7):
    return fold_indices(key, torch.arange(count))


def smooth_images(count=6, channels=3, height=40, width=48):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, channels, 6, 7), generator=generator).float()
    return interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)


def sides(count, height, width):
    return torch.full((count,), height), torch.full((count,), width)


@pytest.mark.parametrize("size", [(16, 16), (24, 32), (64, 48)])
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_a_batch_is_resized_as_its_images_one_by_one(size, channels):
    images = smooth_images(channels=channels)
    boxes = random_resized_boxes(keys_of(6), *sides(6, 40, 48), (0.1, 1.0), (0.5, 2.0))
    together = resample(images, boxes, size).int()
    alone = torch.stack([resize_box(image, box, size) for image, box in zip(images, boxes, strict=True)]).int()
    assert (together - alone).abs().max() <= 2  # theirs is rounded twice
    for image, (top, left, tall, wide), ours in zip(images, boxes, together, strict=True):
        box = image[None, :, top : top + tall, left : left + wide].double()
        exact = interpolate(box, size, mode="bicubic", antialias=True)[0].round().clamp(0, 255).int()
        assert (ours - exact).abs().max() <= 1
        assert (ours - exact).abs().float().mean() < 0.002


def test_more_images_than_one_piece_are_resized_alike():
    images = smooth_images(150)
    boxes = random_resized_boxes(keys_of(150), *sides(150, 40, 48), (0.1, 1.0), (0.5, 2.0))
    parts = [resample(images[i : i + 7], boxes[i : i + 7], (20, 20)) for i in range(0, 150, 7)]
    assert (resample(images, boxes, (20, 20)).int() - torch.cat(parts).int()).abs().max() <= 1


def test_lower_precision_around_it_does_not_coarsen_the_pixels():
    images = smooth_images()
    boxes = random_resized_boxes(keys_of(6), *sides(6, 40, 48), (0.1, 1.0), (0.5, 2.0))
    with torch.autocast("cpu", torch.bfloat16):
        seen = resample(images, boxes, (20, 20))
    assert torch.equal(seen, resample(images, boxes, (20, 20)))


def test_a_box_of_the_models_size_is_cut_out_unchanged():
    images = smooth_images()
    box = torch.tensor([[3, 5, 16, 24]]).expand(6, 4)
    torch.testing.assert_close(resample(images, box, (16, 24)), images[:, :, 3:19, 5:29])
    torch.testing.assert_close(resize_box(images[0], box[0], (16, 24)), images[0, :, 3:19, 5:29])


def test_nothing_outside_of_the_box_is_seen():
    images = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    images[:, :, 10:30, 10:30] = 255
    box = torch.tensor([[10, 10, 20, 20]])
    assert (resample(images, box, (32, 32)) == 255).all()
    assert (resize_box(images[0], box[0], (32, 32)) == 255).all()


@pytest.mark.parametrize(
    ("height", "width", "size"), [(300, 400, (224, 224)), (500, 333, (96, 96)), (128, 100, (112, 112))]
)
def test_evaluation_sees_what_resizing_and_cropping_the_centre_gives(height, width, size):
    image = smooth_images(1, height=height, width=width)[0]
    box = central_boxes(*sides(1, height, width), size, 0.875)[0]
    theirs = v2.Compose(
        [
            v2.Resize(round(size[0] / 0.875), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
        ]
    )(image)
    assert (resize_box(image, box, size).int() - theirs.int()).abs().float().mean() < 1.5


@pytest.mark.parametrize(("height", "width"), [(30, 100), (100, 30), (64, 64)])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 8)])
def test_the_central_box_is_the_largest_of_its_shape(height, width, size):
    top, left, tall, wide = central_boxes(*sides(1, height, width), size, 1.0)[0].tolist()
    assert tall == height or wide == width
    assert abs(tall * size[1] - wide * size[0]) <= max(size)
    assert abs(2 * top + tall - height) <= 1
    assert abs(2 * left + wide - width) <= 1


def test_crop_pct_is_the_share_of_the_shorter_side_that_is_kept():
    assert central_boxes(*sides(1, 256, 320), (224, 224), 0.875)[0].tolist() == [16, 48, 224, 224]


def test_random_boxes_keep_to_their_ranges():
    height, width = 60, 90
    boxes = random_resized_boxes(keys_of(4000), *sides(4000, height, width), (0.2, 0.6), (3 / 4, 4 / 3))
    top, left, tall, wide = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    assert (top + tall == height)[tall < height].any()
    assert (left + wide == width)[wide < width].any()
    area = (tall * wide).float() / (height * width)
    assert 0.19 < area.min() < 0.22
    assert 0.58 < area.max() < 0.62
    ratio = wide / tall
    assert 0.72 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.38


def test_random_boxes_are_spread_as_torchvisions():
    image = torch.zeros(3, 60, 90)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    boxes = [crop.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[box[side] for side in ("top", "left", "height", "width")] for box in boxes]).float()
    ours = random_resized_boxes(keys_of(4000), *sides(4000, 60, 90), (0.2, 1.0), (3 / 4, 4 / 3)).float()
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.7, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.7, rtol=0)


def test_place_size_shape_and_mirroring_of_a_crop_are_drawn_apart():
    ramp = (torch.arange(48, dtype=torch.uint8) * 5).expand(3000, 1, 48, 48)
    keys = keys_of(3000)
    view = View((4, 4), crop="random_resized", scale=(0.1, 0.5), hflip=True)
    top, left, tall, wide = view.boxes(keys, *sides(3000, 48, 48)).float().unbind(1)
    seen = view.apply(ramp, keys)[:, 0, 0].int()
    drawn = [top / (48 - tall), left / (48 - wide), tall * wide, wide / tall, (seen[:, 0] > seen[:, -1]).float()]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(5)
    assert correlations.abs().max() < 0.08


def test_both_ways_of_a_shift_and_mirroring_are_drawn_apart():
    height, width = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    images = (1 + height * 16 + width).clamp(max=255).to(torch.uint8).expand(3000, 1, 16, 16)
    seen = View((16, 16), crop="pad", hflip=True).apply(images.clone(), keys_of(3000))[:, 0].int()
    mirrored = seen[:, 8, 7] > seen[:, 8, 8]
    upright = torch.where(mirrored[:, None, None], seen.flip(-1), seen)
    down, right = upright[:, 8, 8].sub(1).div(16, rounding_mode="floor"), upright[:, 8, 8].sub(1) % 16
    assert (down.unique().tolist(), right.unique().tolist()) == ([6, 7, 8, 9, 10],) * 2
    correlations = torch.corrcoef(torch.stack([down, right, mirrored]).float()) - torch.eye(3)
    assert correlations.abs().max() < 0.08


def test_where_no_random_box_fits_the_largest_of_an_allowed_shape_is_taken():
    boxes = random_resized_boxes(keys_of(50), *sides(50, 10, 400), (0.9, 1.0), (3 / 4, 4 / 3))
    assert boxes[:, 2].eq(10).all()
    assert boxes[:, 3].eq(13).all()


def test_a_clipped_box_is_one_draw_cut_to_the_image_where_another_crop_draws_again():
    """The crop of MAE's published linear probe: each side cut to that of the image, then placed."""
    height, width = 30, 60
    image = sides(4000, height, width)
    ours = clipped_boxes(keys_of(4000), *image, (0.08, 1.0), (3 / 4, 4 / 3))
    top, left, tall, wide = ours.unbind(1)
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    assert (top + tall == height)[tall < height].any()
    assert (left + wide == width)[wide < width].any()
    drawn = random.Random(0)
    theirs = []
    for _ in range(4000):
        area = height * width * drawn.uniform(0.08, 1)
        shape = math.exp(drawn.uniform(math.log(3 / 4), math.log(4 / 3)))
        theirs.append((min(round(math.sqrt(area / shape)), height), min(round(math.sqrt(area * shape)), width)))
    expected = torch.tensor(theirs).float()
    torch.testing.assert_close(ours[:, 2:].float().mean(0), expected.mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(ours[:, 2:].float().std(0), expected.std(0), atol=0.5, rtol=0)
    cut = (expected[:, 0] == height).float().mean().item()
    assert (tall == height).float().mean().item() == pytest.approx(cut, abs=0.03)
    again = random_resized_boxes(keys_of(4000), *image, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (again[:, 2] == height).float().mean() < 0.5 * cut


def test_a_view_takes_the_crop_that_it_names():
    keys, image = keys_of(9), sides(9, 30, 60)
    ranges = ((0.5, 1.0), (3 / 4, 4 / 3))
    for crop, boxes in (("random_resized", random_resized_boxes), ("random_resized_clipped", clipped_boxes)):
        view = View((8, 8), crop, *ranges)
        assert torch.equal(view.boxes(keys, *image), boxes(keys, *image, *ranges))
        assert torch.equal(view.for_evaluation().boxes(keys, *image), View((8, 8)).boxes(keys, *image))


def test_a_box_depends_on_its_own_key_only():
    together = random_resized_boxes(keys_of(9), *sides(9, 40, 40), (0.2, 1.0), (0.75, 1.33))
    alone = [random_resized_boxes(keys_of(9)[i : i + 1], *sides(1, 40, 40), (0.2, 1.0), (0.75, 1.33)) for i in range(9)]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique(dim=0)) > 5


def test_the_crop_of_a_key_is_the_same_in_every_version():
    boxes = random_resized_boxes(keys_of(2), *sides(2, 40, 60), (0.2, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[9, 24, 27, 20], [13, 5, 24, 28]]


def test_a_shift_moves_an_image_and_brings_in_black():
    images = torch.full((2000, 1, 8, 8), 9, dtype=torch.uint8)
    moved = shift(images, keys_of(2000), 1)
    rows, columns = (moved[:, 0] > 0).any(2), (moved[:, 0] > 0).any(1)
    seen = {
        (tuple(row.int().tolist()), tuple(column.int().tolist())) for row, column in zip(rows, columns, strict=True)
    }
    assert len(seen) == 9
    assert (rows.sum(1) >= 7).all()
    assert (columns.sum(1) >= 7).all()


def test_a_shift_cuts_a_window_out_of_the_image_with_a_black_border():
    images = smooth_images(20)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    windows = padded.unfold(2, 40, 1).unfold(3, 48, 1).flatten(2, 3)
    for index, moved in enumerate(shift(images, keys_of(20), 4)):
        assert any(torch.equal(moved, windows[index, :, place]) for place in range(81))


@pytest.mark.parametrize("side", [8, 90])
def test_images_are_mirrored_alike_whatever_their_size(side):
    images = smooth_images(5, 3, side, side)
    chosen = torch.tensor([True, False, False, True, True])
    expected = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    assert torch.equal(mirror(images.clone(), chosen), expected)


def test_every_second_image_is_mirrored():
    images = smooth_images(1000, 1, 8, 8)
    view = View((8, 8), hflip=True)
    seen = view.apply(images.clone(), keys_of(1000))
    mirrored = (seen == images.flip(-1)).all(-1).all(-1).all(-1)
    same = (seen == images).all(-1).all(-1).all(-1)
    assert (mirrored | same).all()
    assert 430 < mirrored.sum() < 570


@pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
def test_a_view_has_its_size_and_depends_on_the_keys_only(crop):
    view = View((16, 24), crop=crop, hflip=True)
    images = smooth_images(5)
    seen = view.apply(images.clone(), keys_of(5))
    assert seen.shape == (5, 3, 16, 24)
    assert seen.dtype == torch.uint8
    assert torch.equal(seen, view.apply(images.clone(), keys_of(5)))
    assert not torch.equal(seen, view.apply(images.clone(), keys_of(5, key=8)))
    assert torch.equal(seen[3:], view.apply(images[3:].clone(), keys_of(5)[3:]))


def test_evaluation_sees_the_same_whatever_the_keys():
    view = View((16, 24), crop="random_resized", hflip=True).for_evaluation()
    images = smooth_images(5)
    assert torch.equal(view.apply(images, keys_of(5)), view.apply(images, keys_of(5, key=8)))


def test_an_image_that_has_the_size_is_seen_as_it_is():
    images = smooth_images(5)
    assert torch.equal(View((40, 48)).apply(images, keys_of(5)), images)


def test_a_pixel_of_a_resized_mask_is_the_one_in_its_middle():
    mask = torch.arange(36, dtype=torch.uint8).view(6, 6)
    assert resize_mask(mask, torch.tensor([0, 0, 6, 6]), (2, 2)).tolist() == [[7, 10], [25, 28]]
    assert resize_mask(mask, torch.tensor([3, 0, 3, 3]), (1, 1)).tolist() == [[25]]


@pytest.mark.parametrize("size", [(20, 24), (40, 48), (80, 96)])
def test_a_mask_is_resized_as_its_image_and_keeps_its_classes(size):
    mask = torch.zeros(40, 48, dtype=torch.uint8)
    mask[10:30, 24:] = 5
    box = torch.tensor([0, 0, 40, 48])
    seen = resize_mask(mask, box, size)
    assert set(seen.unique().tolist()) == {0, 5}
    image = resize_box((mask[None] * 51), box, size)[0]
    assert ((image > 127) == (seen == 5)).float().mean() > 0.97
