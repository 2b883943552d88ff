"""Each operation does what Pillow's does, and every setting reaches the batch."""

import math
import random

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tests.data.builders import Tensors, picture, write_classes
from vitmae.data import readers
from vitmae.data.augment import OPERATIONS, Amount, RandAugment, RandomErasing
from vitmae.data.crops import random_resized_boxes
from vitmae.data.datamodule import ImageData
from vitmae.data.decode import decode
from vitmae.data.sources.folder import Folder
from vitmae.randomness import fold_indices

GREY = (128, 128, 128)
LOG_SHAPES = (math.log(0.3), -math.log(0.3))


def keys_of(count, key=7):
    return fold_indices(key, torch.arange(count))


def ours(name, images, strength, sign=1):
    column = torch.full((len(images), 1, 1, 1), float(strength))
    amount = Amount(column, torch.full_like(column, sign), torch.full((images.shape[1], 1, 1), 128.0))
    seen = OPERATIONS[name](images, amount)
    return seen.clamp(0, 255).to(torch.uint8)


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def theirs(name, image, level, sign=1):
    """timm's operations at a level from 0 to 1, written down with Pillow."""
    width, height = image.size
    factor = max(0.1, 1 + sign * 0.9 * level)
    dark = ImageOps.posterize(image, 4 - int(level * 4)) if int(level * 4) < 4 else Image.new("RGB", image.size)
    added = image.point([min(255, v + int(level * 110)) if v < 128 else v for v in range(256)] * 3)
    operations = {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(sign * level * 30, Image.Resampling.BICUBIC, fillcolor=GREY),
        "posterize": lambda: dark,
        "solarize": lambda: ImageOps.solarize(image, 256 - int(level * 256)),
        "solarize_add": lambda: added,
        "saturation": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "shear_x": lambda: affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0)),
        "shear_y": lambda: affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0)),
        "translate_x": lambda: affine(image, (1, 0, sign * 0.45 * level * width, 0, 1, 0)),
        "translate_y": lambda: affine(image, (1, 0, 0, 0, 1, sign * 0.45 * level * height)),
    }
    return np.array(operations[name]())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_operation_is_pillows(name, level, sign):
    image = np.clip(picture(1, 40, 60).astype(int) // 2 + 20, 0, 255).astype(np.uint8)
    seen = ours(name, torch.from_numpy(image).permute(2, 0, 1)[None], level, sign)[0].permute(1, 2, 0).numpy()
    expected = theirs(name, Image.fromarray(image), level, sign)
    difference = np.abs(seen.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_takes_any_number_of_channels(name, channels):
    images = torch.from_numpy(picture(0, 16, 24, 1)).expand(2, channels, 16, 24)
    assert ours(name, images, 0.9).shape == images.shape


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_leaves_its_input_and_other_images_alone(name):
    images = torch.stack([torch.from_numpy(picture(seed, 16, 24)).permute(2, 0, 1) for seed in range(3)])
    before = images.clone()
    together = ours(name, images, 0.7)
    assert torch.equal(images, before)
    alone = torch.cat([ours(name, image[None], 0.7) for image in images])
    assert (together.int() - alone.int()).abs().max() <= 1


def test_an_image_of_one_colour_survives_what_stretches_values():
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(ours("auto_contrast", flat, 0.9), flat)
    assert torch.equal(ours("equalize", flat, 0.9), flat)


# -- which, and how strong -------------------------------------------------------------------------------------------


def images_of(count, channels=3):
    return torch.stack([torch.from_numpy(picture(seed, 16, 16)).permute(2, 0, 1) for seed in range(count)])[
        :, :channels
    ]


def test_an_image_is_augmented_by_its_key_alone():
    augment = RandAugment(9, fill=(0.5,) * 3)
    images = images_of(40)
    seen = augment(images, keys_of(40))
    assert torch.equal(seen, augment(images, keys_of(40)))
    assert (augment(images[7:9], keys_of(40)[7:9]).int() - seen[7:9].int()).abs().max() <= 1
    assert not torch.equal(seen, augment(images, keys_of(40, key=8)))


def spy(monkeypatch, augment, count):
    """Which operations were done on which images, in order, and how strong."""
    calls = []
    for name in OPERATIONS:

        def record(images, amount, name=name):
            calls.extend((name, float(s), float(g)) for s, g in zip(amount.strength, amount.sign, strict=True))
            return images

        monkeypatch.setitem(OPERATIONS, name, record)
    augment(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), keys_of(count))
    return calls


def test_each_of_two_operations_is_done_every_second_time_and_all_are_equally_likely(monkeypatch):
    calls = spy(monkeypatch, RandAugment(9, fill=(0.5,)), 6000)
    assert 5800 < len(calls) < 6200
    counts = [sum(name == call[0] for call in calls) for name in OPERATIONS]
    assert stats.chisquare(counts).pvalue > 0.001


def test_the_two_operations_are_drawn_apart(monkeypatch):
    calls = spy(monkeypatch, RandAugment(6, fill=(0.5,)), 2000)
    assert len({strength for _, strength, _ in calls}) > 0.95 * len(calls)


def test_strengths_are_spread_around_the_magnitude_and_signs_are_even(monkeypatch):
    calls = spy(monkeypatch, RandAugment(6, fill=(0.5,)), 6000)
    strengths = np.array([call[1] for call in calls])
    assert strengths.mean() == pytest.approx(0.6, abs=0.005)
    assert strengths.std() == pytest.approx(0.05, abs=0.003)
    assert abs(np.mean([call[2] for call in calls])) < 0.05


def test_strengths_stay_in_their_range(monkeypatch):
    strengths = [call[1] for call in spy(monkeypatch, RandAugment(10, fill=(0.5,)), 2000)]
    assert max(strengths) == 1.0


def test_the_fill_comes_in_where_an_image_moves_away():
    seen = RandAugment(9, fill=(0.0, 0.5, 1.0), std=0)(
        torch.full((500, 3, 16, 16), 90, dtype=torch.uint8), keys_of(500)
    )
    corners = {tuple(corner) for corner in seen[:, :, 0, 0].tolist()}
    assert (0, 128, 255) in corners


# -- erasing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_as_many_images_are_erased_as_asked_for(probability):
    images = torch.full((2000, 3, 16, 16), 255, dtype=torch.uint8)
    seen = RandomErasing(probability, (0.2,) * 3, (0.1,) * 3)(images, keys_of(2000))
    changed = (seen != images).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(probability, abs=3 * math.sqrt(probability * (1 - probability) / 2000))
    assert (images == 255).all()


def test_what_is_erased_is_one_box_of_the_right_area():
    images = torch.full((500, 3, 32, 48), 255, dtype=torch.uint8)
    gone = (RandomErasing(1.0, (0.2,) * 3, (0.05,) * 3)(images, keys_of(500)) != 255).all(1)
    areas = gone.float().mean((1, 2))
    assert 0.01 < areas.min() < 0.04
    assert 0.25 < areas.max() < 0.36
    for mask in gone[:50]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def test_an_image_stays_whole_where_none_of_ten_boxes_is_smaller_than_it_in_both_directions():
    """timm's loop, written down: a strip of three rows can lose two of them, one, or none."""
    images = torch.full((2000, 1, 3, 100), 255, dtype=torch.uint8)
    gone = (RandomErasing(1.0, (0.2,), (0.01,))(images, keys_of(2000)) != 255)[:, 0]
    drawn = random.Random(0)
    whole = 0
    for _ in range(2000):
        boxes = [(drawn.uniform(0.02, 1 / 3) * 300, math.exp(drawn.uniform(*LOG_SHAPES))) for _ in range(10)]
        sides = [(round(math.sqrt(area * shape)), round(math.sqrt(area / shape))) for area, shape in boxes]
        whole += not any(tall < 3 and wide < 100 for tall, wide in sides)
    assert 0.5 < whole / 2000 < 0.9
    assert (~gone.any((1, 2))).float().mean().item() == pytest.approx(whole / 2000, abs=0.05)
    assert (gone.any(2).sum(1) <= 2).all()


def test_a_box_is_erased_apart_from_the_one_that_was_cropped():
    keys = keys_of(500)
    gone = (RandomErasing(1.0, (0.2,), (0.05,))(torch.full((500, 1, 32, 32), 255, dtype=torch.uint8), keys) != 255)[
        :, 0
    ]
    side = torch.full((500,), 32)
    cropped = random_resized_boxes(keys, side, side, (0.2, 1.0), (3 / 4, 4 / 3))
    shares = torch.stack([gone.float().mean((1, 2)), (cropped[:, 2] * cropped[:, 3]).float()])
    assert abs(torch.corrcoef(shares)[0, 1]) < 0.15


def test_the_noise_has_the_datas_mean_and_deviation():
    images = torch.full((400, 3, 32, 32), 255, dtype=torch.uint8)
    seen = RandomErasing(1.0, (0.3, 0.4, 0.5), (0.05, 0.1, 0.08))(images, keys_of(400))
    noise = seen.transpose(0, 1)[:, (seen != 255).all(1)].float() / 255
    torch.testing.assert_close(noise.mean(1), torch.tensor([0.3, 0.4, 0.5]), atol=0.005, rtol=0)
    torch.testing.assert_close(noise.std(1), torch.tensor([0.05, 0.1, 0.08]), atol=0.005, rtol=0)
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.02


# -- the settings ----------------------------------------------------------------------------------------------------


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, index):
        self.trained.append(batch)
        return self.weight * batch.images.float().mean()

    def validation_step(self, batch, index):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train(tmp_path, **settings):
    data = ImageData(**{"source": Tensors(40, (16, 16), 3), "img_size": 16, "in_chans": 3, "batch_size": 8} | settings)
    module = Recorder()
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    ).fit(module, datamodule=data)
    return module


pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`")


@pytest.mark.parametrize("setting", [{"rand_augment": 9}, {"random_erasing": 1.0}])
def test_augmentation_reaches_training_batches_and_no_others(tmp_path, setting):
    plain, augmented = train(tmp_path), train(tmp_path, **setting)
    pairs = list(zip(plain.trained, augmented.trained, strict=True))
    assert all(torch.equal(one.keys, other.keys) for one, other in pairs)
    assert all(not torch.equal(one.images, other.images) for one, other in pairs)
    for one, other in zip(plain.validated, augmented.validated, strict=True):
        assert torch.equal(one.images, other.images)


def test_boxes_are_erased_after_all_other_augmentation_with_the_datas_noise(tmp_path):
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.2, 0.3)
    stats = {"stats": {"mean": mean, "std": std}}
    augmented = train(tmp_path, **stats, rand_augment=9, random_erasing=0.8).trained
    for plain, seen in zip(train(tmp_path, **stats).trained, augmented, strict=True):
        moved = RandAugment(9, fill=mean)(plain.images, plain.keys)
        assert torch.equal(seen.images, RandomErasing(0.8, mean, std)(moved, plain.keys))


def test_augmentation_is_the_same_whatever_the_workers(tmp_path):
    settings = {"rand_augment": 9, "random_erasing": 0.5}
    for one, other in zip(
        train(tmp_path, **settings).trained, train(tmp_path, **settings, num_workers=2).trained, strict=True
    ):
        assert torch.equal(one.images, other.images)


def test_repeats_show_an_image_several_times_in_its_batch_each_time_differently():
    settings = {
        "source": Tensors(40, (16, 16), 3),
        "img_size": 16,
        "in_chans": 3,
        "batch_size": 8,
        "crop": "random_resized",
    }
    data = ImageData(**settings, repeats=4)
    data.prepare()
    batches = list(data.train_dataloader())
    assert len(batches) == 5
    for batch in batches:
        assert len(batch.images) == 8
        assert torch.equal(batch.labels, batch.labels[:2].repeat(4))
        assert len(set(batch.keys.tolist())) == 8
        assert not torch.equal(batch.images[:2], batch.images[2:4])
    once = ImageData(**settings | {"batch_size": 2})
    once.prepare()
    for batch, single in zip(batches, once.train_dataloader(), strict=False):
        assert torch.equal(batch.images[:2], single.images)


def test_a_repeated_file_is_decoded_once_and_cropped_several_times(tmp_path, monkeypatch):
    folder = write_classes(tmp_path, {"cat": 6, "dog": 6}, height=150, width=200)
    decoded = []
    monkeypatch.setattr(readers, "decode", lambda *args: decoded.append(1) or decode(*args))
    data = ImageData(
        Folder(),
        path=str(folder),
        img_size=32,
        in_chans=3,
        batch_size=8,
        crop="random_resized",
        repeats=4,
        num_workers=0,
        stats={"mean": [0.5] * 3, "std": [0.5] * 3},
    )
    data.prepare()
    decoded.clear()
    batch = next(iter(data.train_dataloader()))
    assert len(decoded) == 2
    assert torch.equal(batch.labels, batch.labels[:2].repeat(4))
    assert len(batch.images.flatten(1).unique(dim=0)) == 8
