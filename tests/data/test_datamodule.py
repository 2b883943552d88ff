import os

import numpy as np
import pytest
import torch

from tests.data.builders import Tensors, encode, picture, write_classes
from vitmae.batch import Batch
from vitmae.data import preload as intake
from vitmae.data import readers
from vitmae.data.datamodule import ImageData
from vitmae.data.part_loader import workers_for
from vitmae.data.sources.digits import Digits
from vitmae.data.sources.folder import Folder
from vitmae.data.sources.shapes import Shapes
from vitmae.data.splits import MemoryImages
from vitmae.data.subsets import Part, at_most
from vitmae.errors import UserError

FILES = {"source": Folder(), "img_size": 32, "in_chans": 3, "batch_size": 4, "crop": "random_resized", "hflip": True}
MEMORY = {"source": Tensors(), "img_size": 8, "in_chans": 1, "batch_size": 4, "crop": "pad", "hflip": True}
DRAWN = {"source": Shapes(64, 16, 16), "img_size": 16, "in_chans": 3, "batch_size": 8, "crop": "pad", "hflip": True}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of two classes, 150 x 200 pixels: too large to be kept in memory."""
    return write_classes(tmp_path_factory.mktemp("photos"), {"cat": 12, "dog": 10}, height=150, width=200)


def prepared(**settings):
    data = ImageData(**{"num_workers": 0} | settings)
    data.prepare()
    return data


def sets(photos):
    return [FILES | {"path": str(photos)}, MEMORY, DRAWN]


def joined(loader):
    batches = list(loader)
    return [torch.cat(tensors) for tensors in zip(*[batch[:3] for batch in batches], strict=True)] + [
        [batch.key for batch in batches]
    ]


def assert_same(one, other):
    for ours, theirs in zip(joined(one), joined(other), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(3))
def test_every_set_hands_over_bytes_labels_and_keys(photos, which):
    settings = sets(photos)[which]
    data = prepared(**settings)
    for loader in (data.train_dataloader(), data.val_dataloader(), *data.probe_dataloaders()):
        batch = next(iter(loader))
        assert isinstance(batch, Batch)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (data.in_chans, *data.img_size)
        assert batch.labels.dtype == batch.keys.dtype == torch.int64
        assert len(batch.images) == len(batch.labels) == len(batch.keys)
        assert isinstance(batch.key, int)
        assert batch.images.is_contiguous()


@pytest.mark.parametrize("which", range(3))
def test_the_number_of_workers_changes_nothing(photos, which):
    settings = sets(photos)[which]
    alone, helped = prepared(**settings), prepared(**settings | {"num_workers": 2})
    ours, theirs = alone.train_dataloader(), helped.train_dataloader()
    for _ in range(2):  # epochs
        assert_same(ours, theirs)
    assert_same(alone.val_dataloader(), helped.val_dataloader())


@pytest.mark.parametrize("which", range(3))
def test_a_training_image_looks_different_in_every_epoch(photos, which):
    loader = prepared(**sets(photos)[which]).train_dataloader()
    first, second = joined(loader), joined(loader)
    shared = set(first[2].tolist()) & set(second[2].tolist())
    assert not shared
    assert not torch.equal(first[0], second[0])
    assert not set(first[3]) & set(second[3])


@pytest.mark.parametrize("which", range(3))
def test_a_validation_image_always_looks_the_same_and_has_the_same_key(photos, which):
    data = prepared(**sets(photos)[which])
    assert_same(data.val_dataloader(), data.val_dataloader())
    assert_same(data.val_dataloader(), data.probe_dataloaders()[1])
    assert len(set(joined(data.val_dataloader())[2].tolist())) == data.num_val


@pytest.mark.parametrize("which", range(3))
def test_the_batch_size_changes_no_sample(photos, which):
    settings = sets(photos)[which]
    small, large = (prepared(**settings | {"batch_size": size}) for size in (2, 20))
    count = len(large.train_dataloader()) * 20
    for ours, theirs in zip(joined(small.train_dataloader())[:3], joined(large.train_dataloader())[:3], strict=True):
        assert torch.equal(ours[:count], theirs)


def test_how_many_images_are_held_decoded_changes_nothing(photos, monkeypatch):
    one, other = (prepared(**FILES | {"path": str(photos), "batch_size": 8, "repeats": 2}) for _ in range(2))
    at_once = joined(one.train_dataloader())
    monkeypatch.setattr(readers, "HELD_DECODED", 200_000)  # two of them
    for ours, theirs in zip(at_once[:3], joined(other.train_dataloader())[:3], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("which", range(3))
def test_the_seed_changes_order_crops_and_keys(photos, which):
    settings = sets(photos)[which]
    one, other = (joined(prepared(**settings, seed=seed).train_dataloader()) for seed in (0, 1))
    assert not torch.equal(one[0], other[0])
    assert not set(one[2].tolist()) & set(other[2].tolist())


@pytest.mark.parametrize("which", range(3))
def test_evaluation_crops_nothing_at_random(photos, which):
    settings = sets(photos)[which]
    data, other = prepared(**settings), prepared(**settings | {"seed": 1})
    assert torch.equal(joined(data.val_dataloader())[0], joined(other.val_dataloader())[0])


def test_reading_batches_leaves_the_images_in_memory_unchanged():
    data = prepared(**MEMORY)
    before = data.parts.train.images.images.clone()
    list(data.train_dataloader())
    assert torch.equal(data.parts.train.images.images, before)


def test_memory_and_files_show_the_same_pictures(tmp_path):
    images = np.stack([picture(seed, 32, 32) for seed in range(12)])
    for number, image in enumerate(images):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        (tmp_path / str(number % 2) / f"{number:02}.png").write_bytes(encode(image))
    settings = FILES | {"path": str(tmp_path), "batch_size": 2, "img_size": 24}
    in_memory = prepared(**settings)
    assert in_memory.parts.train.images.__class__.__name__ == "MemoryImages"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "LARGEST_SIDE", 16)
        from_files = prepared(**settings)
    assert from_files.parts.train.images.__class__.__name__ == "FileImages"
    for ours, theirs in zip(joined(in_memory.train_dataloader()), joined(from_files.train_dataloader()), strict=True):
        if isinstance(ours, torch.Tensor) and ours.ndim == 4:
            assert (ours.int() - theirs.int()).abs().max() <= 2
        else:
            assert (ours == theirs).all() if isinstance(ours, torch.Tensor) else ours == theirs


# -- sizes, channels, statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("img_size", [24, [16, 40], [40, 16]])
@pytest.mark.parametrize("channels", [1, 3])
def test_rectangles_and_channels_are_as_asked_for(photos, img_size, channels):
    data = prepared(**FILES | {"path": str(photos), "img_size": img_size, "in_chans": channels})
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    assert data.img_size == size
    assert next(iter(data.train_dataloader())).images.shape == (4, channels, *size)
    assert len(data.mean) == len(data.std) == channels


def test_arrays_of_twelve_channels_go_the_same_way(tmp_path):
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.full((12, 160, 140), number * 20, np.uint8))
    data = prepared(**FILES | {"path": str(tmp_path), "in_chans": 12})
    assert next(iter(data.train_dataloader())).images.shape == (4, 12, 32, 32)
    assert data.num_classes is None


def test_measured_statistics_are_those_of_the_training_pixels():
    data = prepared(**MEMORY, stats="auto")
    pixels = data.parts.train.images.images.double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()], abs=1e-9)
    assert data.std == pytest.approx([pixels.std(unbiased=False).item()], abs=1e-9)


@pytest.mark.parametrize("source", [Digits(), Shapes(2048, 64, 64)])
def test_stated_statistics_are_the_measured_ones(source):
    settings = {"source": source, "img_size": 8 if isinstance(source, Digits) else 32, "batch_size": 8}
    settings["in_chans"] = 1 if isinstance(source, Digits) else 3
    stated, measured = prepared(**settings), prepared(**settings, stats="auto")
    assert stated.mean == pytest.approx(measured.mean, abs=0.01)
    assert stated.std == pytest.approx(measured.std, abs=0.01)


def test_statistics_of_files_are_measured_once(photos, monkeypatch):
    settings = FILES | {"path": str(photos), "stats": "auto"}
    first = prepared(**settings)
    monkeypatch.setattr("vitmae.data.stats.measure", lambda images: pytest.fail("measured again"))
    assert prepared(**settings).mean == first.mean
    with pytest.raises(pytest.fail.Exception):
        prepared(**settings | {"img_size": 40})


def test_statistics_that_are_given_are_used():
    data = prepared(**MEMORY, stats={"mean": [0.25], "std": [0.5]})
    assert (data.mean, data.std) == ((0.25,), (0.5,))


def test_statistics_do_not_depend_on_the_training_fraction():
    assert prepared(**MEMORY, stats="auto").mean == prepared(**MEMORY, stats="auto", train_fraction=0.2).mean


def test_a_set_without_change_has_a_deviation_that_can_be_divided_by(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encode(np.full((20, 20, 3), 7, np.uint8)))
    assert min(prepared(**FILES | {"path": str(tmp_path), "batch_size": 1, "val_fraction": 0.5}).std) > 0.001


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"img_size": 224}, 0.875), ({"img_size": 384}, 1.0), ({"img_size": 64}, 1.0), ({"crop_pct": 0.5}, 0.5)],
)
def test_photographs_are_cropped_by_a_seventh_eighth_at_usual_sizes(photos, settings, kept):
    data = prepared(**FILES | {"path": str(photos), "stats": {"mean": [0.5] * 3, "std": [0.5] * 3}} | settings)
    assert data.loaders.load(data.parts.val, []).reader.reader.view.crop_pct == kept


def test_drawn_images_that_have_the_size_are_not_cropped():
    data = prepared(source=Shapes(16, 16, 16), img_size=96, in_chans=3, batch_size=8)
    images = next(iter(data.val_dataloader())).images
    assert torch.equal(images, data.parts.val.images.read(torch.arange(8)))


def test_a_set_in_memory_is_copied_to_a_device_once():
    images = prepared(**MEMORY).parts.train.images
    assert images.to(torch.device("cpu")) is images
    moved = images.to(torch.device("meta"))
    assert moved.images.device.type == "meta"
    assert images.to(torch.device("meta")) is moved


@pytest.mark.parametrize(("processes", "workers"), [(1, 8), (2, 4), (16, 1)])
def test_workers_share_the_cores_with_the_other_processes(monkeypatch, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert workers_for("auto", processes) == workers
    assert workers_for(3, processes) == 3


# -- subsets ---------------------------------------------------------------------------------------------------------


def numbers(part):
    return set(part.indices.tolist())


def test_validation_images_are_not_trained_on_whatever_the_seeds():
    held_out, trained = (
        prepared(source=Digits(), img_size=8, in_chans=1, batch_size=8, seed=seed, val_fraction=0.2) for seed in (0, 1)
    )
    assert numbers(held_out.parts.val) == numbers(trained.parts.val)
    assert not numbers(held_out.parts.val) & numbers(trained.parts.train)
    assert len(numbers(held_out.parts.val) | numbers(held_out.parts.train)) == 1437


def test_a_fraction_takes_its_share_of_every_class_and_grows():
    parts = {f: prepared(**MEMORY | {"batch_size": 1}, train_fraction=f).parts.train for f in (0.1, 0.3, 0.5, 1.0)}
    for fraction, part in parts.items():
        assert part.labels.bincount().tolist() == [int(10 * fraction + 0.5)] * 4
    assert numbers(parts[0.1]) < numbers(parts[0.3]) < numbers(parts[0.5]) < numbers(parts[1.0])


def test_a_fraction_is_a_function_of_the_seed():
    one, same, other = (prepared(**MEMORY, train_fraction=0.5, seed=seed).parts.train for seed in (0, 0, 1))
    assert numbers(one) == numbers(same) != numbers(other)


def test_validation_images_do_not_depend_on_the_training_fraction():
    settings = {"source": Digits(), "img_size": 8, "in_chans": 1, "batch_size": 8}
    assert numbers(prepared(**settings).parts.val) == numbers(prepared(**settings, train_fraction=0.1).parts.val)


@pytest.mark.parametrize("limit", [1, 3, 8, 1000])
def test_a_probe_gets_at_most_as_many_images_as_it_asks_for(limit):
    train, val = prepared(**MEMORY).probe_dataloaders(limit)
    assert len(joined(train)[0]) == min(limit, 40)
    labels = joined(val)[1]
    assert len(labels) == min(limit, 20)
    if limit == 8:
        assert labels.bincount().tolist() == [2] * 4


def test_some_of_a_sorted_set_are_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 10)
    part = Part(MemoryImages(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), labels), torch.arange(40))
    assert at_most(part, 8, 0, "probe").labels.tolist() == [0] * 2 + [1] * 4 + [2] * 2


def test_a_probe_looks_at_training_images_without_augmentation():
    train, _ = prepared(**MEMORY).probe_dataloaders()
    data = prepared(**MEMORY)
    assert torch.equal(joined(train)[0], data.parts.train.images.images)


def test_the_key_of_some_images_tells_them_from_as_many_others():
    """Without labels, which would give them away."""

    def key(split="train", limit=None, **settings):
        return prepared(**MEMORY | {"source": Tensors(labelled=False)} | settings).fingerprint(split, limit)

    half = {"train_fraction": 0.5}
    keys = [key(), key("val"), key("test"), key(limit=19), key(limit=20), key(**half), key(**half, seed=1)]
    assert len(set(keys)) == len(keys)
    assert key(**half, seed=1) == keys[-1]


def test_images_without_labels_are_labelled_minus_one():
    data = prepared(**MEMORY | {"source": Tensors(labelled=False)})
    assert data.num_classes is None
    assert data.class_names is None
    assert (joined(data.train_dataloader())[1] == -1).all()


def test_preparing_twice_loads_once(monkeypatch):
    data = prepared(**MEMORY)
    monkeypatch.setattr(data.source, "load", lambda *_: pytest.fail("loaded again"))
    data.prepare()
    data.setup("fit")


# -- masks -----------------------------------------------------------------------------------------------------------


def test_masks_come_with_the_images_they_are_of():
    data = prepared(**DRAWN)
    assert data.num_mask_classes == 9
    images, masks = zip(*data.evaluation_dataloader("val", masks=True), strict=True)
    drawn, classes = data.parts.val.images.render(torch.arange(16))
    assert torch.equal(torch.cat([batch.images for batch in images]), drawn)
    assert torch.equal(torch.cat(masks), classes)


def test_masks_without_any_are_refused():
    with pytest.raises(UserError, match="per-pixel"):
        prepared(**MEMORY).evaluation_dataloader("val", masks=True)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"img_size": 0}, "data.img_size"),
        ({"img_size": -8}, "data.img_size"),
        ({"img_size": [8, 8, 8]}, "data.img_size"),
        ({"in_chans": 0}, "data.in_chans"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"batch_size": 41}, "data.batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"num_workers": "many"}, "data.num_workers"),
        ({"train_fraction": 0}, "data.train_fraction"),
        ({"train_fraction": 1.5}, "data.train_fraction"),
        ({"train_fraction": 0.01}, "data.train_fraction"),
        ({"train_fraction": 0.049, "source": Tensors(41), "batch_size": 1}, "class class 1"),
        ({"val_fraction": 1.0}, "data.val_fraction"),
        ({"val_fraction": 0}, "data.val_fraction"),
        ({"crop_pct": 0}, "data.crop_pct"),
        ({"crop": "centre"}, "data.crop"),
        ({"crop": "random_resized", "crop_ratio": "abc"}, "data.crop_ratio"),
        ({"crop": "random_resized", "crop_scale": [0.2]}, "data.crop_scale"),
        ({"crop": "random_resized", "crop_scale": [0.5, 0.2]}, "data.crop_scale"),
        ({"crop": "random_resized", "crop_scale": [0.5, 2.0]}, "data.crop_scale"),
        ({"crop_pct": 2.0}, "data.crop_pct"),
        ({"rand_augment": 11}, "data.rand_augment"),
        ({"random_erasing": 1.5}, "data.random_erasing"),
        ({"repeats": 3}, "data.repeats"),
        ({"repeats": 0}, "data.repeats"),
        *(
            ({name: "abc"}, f"data.{name}=abc")
            for name in (
                "img_size",
                "in_chans",
                "batch_size",
                "num_workers",
                "train_fraction",
                "val_fraction",
                "crop_pct",
                "crop",
                "crop_scale",
                "rand_augment",
                "random_erasing",
                "repeats",
                "seed",
                "stats",
                "on_error",
                "hflip",
                "drop_last",
            )
        ),
        ({"on_error": "ignore"}, "data.on_error"),
        ({"stats": "none"}, "data.stats"),
        ({"stats": {"mean": [0.5]}}, "data.stats"),
        ({"stats": {"mean": [0.5, 0.5], "std": [0.5, 0.5]}}, "data.stats"),
        ({"stats": {"mean": [127], "std": [50]}}, "data.stats"),
        ({"stats": {"mean": [0.5], "std": [0]}}, "data.stats"),
    ],
)
def test_a_bad_setting_gets_one_line_that_names_it(settings, named):
    with pytest.raises(UserError) as error:
        prepared(**MEMORY | settings)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_without_a_test_split_says_so(photos):
    with pytest.raises(UserError, match="test split"):
        prepared(**FILES | {"path": str(photos)}).evaluation_dataloader("test")


def test_a_class_too_small_to_validate_and_train_on_is_named(tmp_path):
    write_classes(tmp_path, {"cat": 8, "dog": 1})
    with pytest.raises(UserError, match="class dog"):
        prepared(**FILES | {"path": str(tmp_path), "val_fraction": 0.6, "batch_size": 1})
