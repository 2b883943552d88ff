import numpy as np
import pytest
import torch

from tests.data.builders import encode, picture, write_classes
from vitmae.data.datamodule import ImageData
from vitmae.data.decode import EXTENSIONS
from vitmae.data.sources.folder import Folder
from vitmae.errors import UserError


def load(path, **settings):
    return Folder(**settings).load(str(path) if not isinstance(path, dict | list | type(None)) else path, (32, 32), 3)


def names(images):
    return [images.name(index) for index in range(len(images))]


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path):
    write_classes(tmp_path, {"dog": 2, "cat": 3})
    splits = load(tmp_path)
    assert splits.class_names == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert all(
        name.split("/")[-2] == ("cat", "dog")[label]
        for name, label in zip(names(splits.train), splits.train.labels.tolist(), strict=True)
    )
    assert splits.val is splits.test is None


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_found_by_their_usual_names(tmp_path, val):
    for split in ("train", val, "test"):
        write_classes(tmp_path / split, {"cat": 2, "dog": 1})
    splits = load(tmp_path)
    assert [len(images) for images in (splits.train, splits.val, splits.test)] == [3, 3, 3]
    assert all(f"/{val}/" in name for name in names(splits.val))


def test_splits_can_be_named_one_by_one(tmp_path):
    write_classes(tmp_path / "a", {"cat": 2, "dog": 1})
    write_classes(tmp_path / "b", {"dog": 1})
    splits = load({"train": str(tmp_path / "a"), "val": str(tmp_path / "b")})
    assert splits.val.labels.tolist() == [1]


def test_images_deeper_in_a_class_folder_belong_to_the_class(tmp_path):
    write_classes(tmp_path / "cat", {"indoors": 1, "outdoors": 1})
    write_classes(tmp_path, {"dog": 1})
    assert load(tmp_path).train.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("what", ["flat", "one subfolder", "mixed"])
def test_a_folder_without_class_folders_has_no_labels(tmp_path, what):
    if what != "one subfolder":
        (tmp_path / "0.png").write_bytes(encode(picture()))
    if what != "flat":
        write_classes(tmp_path, {"photos": 2} if what == "one subfolder" else {"a": 1, "b": 1})
    splits = load(tmp_path)
    assert splits.class_names is None
    assert (splits.train.labels == -1).all()


def test_a_glob_has_no_labels(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "dog" / "notes.txt").write_text("")
    splits = load(f"{tmp_path}/**/*")
    assert splits.train.labels.tolist() == [-1] * 3


def test_a_list_names_files_beside_itself(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "list.txt").write_text("cat/1.jpg\n\ndog/0.jpg\n")
    assert names(load(tmp_path / "list.txt").train) == [str(tmp_path / "cat/1.jpg"), str(tmp_path / "dog/0.jpg")]


def test_several_places_are_joined(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1})
    assert len(load([str(tmp_path / "cat"), str(tmp_path / "dog")]).train) == 3


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1, ".cache": 1})
    (tmp_path / "cat" / "._0.jpg").write_bytes(b"")
    (tmp_path / "cat" / "notes.md").write_text("")
    assert len(load(tmp_path).train) == 3


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_kind_of_file_is_found_whatever_its_case(tmp_path, extension):
    (tmp_path / f"0{extension}").write_bytes(b"x")
    (tmp_path / f"1{extension.upper()}").write_bytes(b"x")
    assert len(load(tmp_path).train) == 2


def test_names_that_are_no_ascii_are_read(tmp_path):
    write_classes(tmp_path, {"Hündin": 1, "猫": 1})
    splits = load(tmp_path)
    assert splits.class_names == ("Hündin", "猫")
    with splits.train.open(1) as file:
        assert file.read(2) == b"\xff\xd8"


def test_masks_lie_like_the_images(tmp_path):
    write_classes(tmp_path / "images", {"cat": 6, "dog": 6}, height=40, width=60)
    for path in (tmp_path / "images").rglob("*.jpg"):
        mask = tmp_path / "masks" / path.relative_to(tmp_path / "images").with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        classes = np.zeros((40, 60), np.uint8)
        classes[:, 30:] = 1 + int(path.stem)
        mask.write_bytes(encode(classes))
    source = Folder(masks=str(tmp_path / "masks"), num_mask_classes=7)
    data = ImageData(
        source,
        path=str(tmp_path / "images"),
        img_size=[20, 20],
        in_chans=3,
        batch_size=4,
        num_workers=0,
        val_fraction=0.5,
    )
    data.prepare()
    assert data.num_mask_classes == 7
    seen = []
    for batch, masks in data.evaluation_dataloader("val", masks=True):
        assert masks.shape == (*batch.labels.shape, 20, 20)
        assert (masks[:, :, :10] == 0).all()
        assert (masks[:, :, 10:] == masks[:, :1, 10:11]).all()
        seen += masks[:, 0, -1].tolist()
    assert sorted(seen) == sorted(1 + int(data.parts.val.images.name(i)[-5]) for i in data.parts.val.indices.tolist())


def test_a_mask_of_another_size_or_a_missing_one_is_named(tmp_path):
    write_classes(tmp_path / "images", {"a": 2}, height=40, width=60)
    (tmp_path / "masks").mkdir()
    data = ImageData(
        Folder(str(tmp_path / "masks"), 2),
        path=str(tmp_path / "images" / "a"),
        img_size=20,
        in_chans=3,
        batch_size=1,
        num_workers=0,
        val_fraction=0.5,
    )
    data.prepare()
    with pytest.raises(UserError, match=r"masks/\d\.png is missing"):
        list(data.evaluation_dataloader("val", masks=True))
    for number in range(2):
        (tmp_path / "masks" / f"{number}.png").write_bytes(encode(np.zeros((4, 4), np.uint8)))
    with pytest.raises(UserError, match=r"mask of .* 60 x 40"):
        list(data.evaluation_dataloader("val", masks=True))


# -- bad input -------------------------------------------------------------------------------------------------------


def one_line(error, *parts):
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts)


def test_a_path_that_is_not_set_is_asked_for():
    with pytest.raises(UserError) as error:
        load(None)
    one_line(error, "data.path=")


@pytest.mark.parametrize("name", ["missing", "missing/*.jpg", "missing.txt"])
def test_a_missing_path_is_named(tmp_path, name):
    with pytest.raises(UserError) as error:
        load(tmp_path / name)
    one_line(error, "missing")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, str(tmp_path), "empty")


def test_an_empty_class_folder_is_named(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 1, "eel": 0})
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "eel")


def test_a_file_where_a_folder_is_meant_is_named(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encode(picture(), "JPEG"))
    with pytest.raises(UserError) as error:
        load(tmp_path / "photo.jpg")
    one_line(error, "photo.jpg is a file")


def test_an_empty_list_is_named(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError) as error:
        load(tmp_path / "list.txt")
    one_line(error, "list.txt")


def test_a_validation_class_that_training_lacks_is_named(tmp_path):
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    write_classes(tmp_path / "val", {"cat": 1, "eel": 1})
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "class eel", "val")


def test_validation_images_without_class_folders_are_named(tmp_path):
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.png").write_bytes(encode(picture()))
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "val", "class folder")


@pytest.mark.parametrize("path", [{"val": "x"}, {"train": "x", "dev": "y"}])
def test_splits_that_are_named_wrongly_are_refused(path):
    with pytest.raises(UserError) as error:
        load(path)
    one_line(error, "train", "val", "test")


def test_masks_need_a_folder_and_a_number_of_classes(tmp_path):
    with pytest.raises(UserError, match="num_mask_classes"):
        Folder(masks=str(tmp_path))
    with pytest.raises(UserError, match="not a folder"):
        Folder(masks=str(tmp_path / "missing"), num_mask_classes=3)


def test_labels_fit_the_number_of_classes_of_the_data_module(tmp_path):
    write_classes(tmp_path, {"cat": 6, "dog": 6}, height=150, width=200)
    data = ImageData(Folder(), path=str(tmp_path), img_size=32, in_chans=3, batch_size=4, num_workers=0)
    data.prepare()
    assert data.num_classes == 2
    assert torch.cat([batch.labels for batch in data.train_dataloader()]).max() == 1
