import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.builders import encode, picture
from vitmae.data.datamodule import ImageData
from vitmae.data.sources import parquet
from vitmae.data.sources.parquet import Parquet, ParquetImages
from vitmae.errors import UserError


def write(path, labels, seed=0, image="image", label="label", struct=True, names=None, row_group_size=3, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encode(picture(seed + number, *size)) for number in range(len(labels))]
    columns = {image: [{"bytes": data, "path": None} for data in images] if struct else images}
    if label is not None:
        columns[label] = labels
    table = pa.table(columns)
    if names:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def load(path, **settings):
    path = path if isinstance(path, dict | list) else str(path)
    return Parquet(**settings).load(path, (32, 32), 3)


def first_pixels(images):
    from vitmae.data.decode import decode

    return [decode(images.open(i).read(), 3, "x") for i in range(len(images))]


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("image", ["image", "img"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_the_usual_columns_are_found(tmp_path, struct, image, label):
    splits = load(write(tmp_path / "a.parquet", [1, 0, 1, 2], image=image, label=label, struct=struct))
    assert splits.train.labels.tolist() == [1, 0, 1, 2]
    assert splits.class_names == ("0", "1", "2")
    for number, pixels in enumerate(first_pixels(splits.train)):
        np.testing.assert_array_equal(pixels, picture(number, 32, 32))


def test_other_columns_can_be_named(tmp_path):
    path = write(tmp_path / "a.parquet", [1, 0], image="photo", label="kind")
    assert load(path, image_column="photo", label_column="kind").train.labels.tolist() == [1, 0]


def test_names_of_classes_are_taken_from_the_hubs_notes(tmp_path):
    assert load(write(tmp_path / "a.parquet", [1, 0], names=["cat", "dog", "eel"])).class_names == ("cat", "dog", "eel")


@pytest.mark.parametrize("labels", [[0, 2, 1], ["zebra", "cat", "ape"]])
def test_classes_keep_the_order_of_the_hubs_notes_which_need_not_be_the_alphabets(tmp_path, labels):
    splits = load(write(tmp_path / "a.parquet", labels, names=["zebra", "ape", "cat"]))
    assert [splits.class_names[number] for number in splits.train.labels] == ["zebra", "cat", "ape"]
    assert splits.train.labels.tolist() == [0, 2, 1]


def test_labels_can_be_words(tmp_path):
    write(tmp_path / "train.parquet", ["dog", "cat", "dog"])
    write(tmp_path / "test.parquet", ["cat"])
    splits = load(tmp_path)
    assert splits.class_names == ("cat", "dog")
    assert splits.train.labels.tolist() == [1, 0, 1]
    assert splits.test.labels.tolist() == [0]


def test_a_table_without_labels_has_none(tmp_path):
    splits = load(write(tmp_path / "a.parquet", [0, 1], label=None))
    assert splits.class_names is None
    assert splits.train.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("labels", [[0, None, 1], ["a", None, "b"]])
def test_a_row_without_a_label_is_labelled_minus_one(tmp_path, labels):
    splits = load(write(tmp_path / "a.parquet", labels))
    assert splits.train.labels.tolist() == [0, -1, 1]


@pytest.mark.parametrize("folder", [".", "data"])
def test_splits_are_told_by_the_files_names(tmp_path, folder):
    write(tmp_path / folder / "train-00000-of-00002.parquet", [0, 1])
    write(tmp_path / folder / "train-00001-of-00002.parquet", [1, 2], seed=2)
    write(tmp_path / folder / "validation-00000-of-00001.parquet", [2])
    write(tmp_path / folder / "test.parquet", [0])
    splits = load(tmp_path)
    assert splits.train.labels.tolist() == [0, 1, 1, 2]
    assert (splits.val.labels.tolist(), splits.test.labels.tolist()) == ([2], [0])
    np.testing.assert_array_equal(first_pixels(splits.train)[3], picture(3, 32, 32))


def test_splits_can_be_folders_or_be_named(tmp_path):
    one, two = write(tmp_path / "train" / "x.parquet", [0, 1]), write(tmp_path / "val" / "y.parquet", [1])
    for splits in (
        load(tmp_path),
        load({"train": str(one), "val": str(two)}),
        load({"train": [str(one)], "val": str(two)}),
    ):
        assert splits.train.labels.tolist() == [0, 1]
        assert splits.val.labels.tolist() == [1]


def test_files_without_a_splits_name_are_all_trained_on(tmp_path):
    write(tmp_path / "0.parquet", [0])
    write(tmp_path / "1.parquet", [1])
    splits = load(f"{tmp_path}/*.parquet")
    assert splits.train.labels.tolist() == [0, 1]
    assert splits.val is splits.test is None


def test_a_single_file_is_trained_on_whatever_its_name(tmp_path):
    assert len(load(write(tmp_path / "test.parquet", [0, 1])).train) == 2


def test_large_tables_are_mapped_from_the_cache_and_sent_without_their_images(tmp_path, own_cache, monkeypatch):
    path = write(tmp_path / "a.parquet", list(range(10)))
    small = load(path).train
    monkeypatch.setattr(parquet, "LARGEST_IN_MEMORY", 100)
    large = load(path).train
    assert len(list(own_cache.rglob("*.arrow"))) == 1
    sent = pickle.dumps(large)
    assert len(sent) < len(small.open(0).read()) * 5 < len(pickle.dumps(small))
    for images in (large, pickle.loads(sent), pickle.loads(pickle.dumps(small))):
        assert [images.open(i).read() for i in range(10)] == [small.open(i).read() for i in range(10)]
    monkeypatch.setattr(ParquetImages, "_batches", lambda images: pytest.fail("copied again"))
    load(path)


def test_a_changed_table_is_copied_again(tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_IN_MEMORY", 100)
    load(write(tmp_path / "a.parquet", [0, 1]))
    splits = load(write(tmp_path / "a.parquet", [0, 1, 2], seed=5))
    np.testing.assert_array_equal(first_pixels(splits.train)[0], picture(5, 32, 32))


@pytest.mark.parametrize("size", [(32, 32), (150, 200)])
def test_small_images_are_decoded_once_and_large_ones_by_workers(tmp_path, size):
    write(tmp_path / "a.parquet", [0, 1] * 6, size=size)
    data = ImageData(Parquet(), path=str(tmp_path), img_size=32, in_chans=3, batch_size=4, num_workers=2)
    data.prepare()
    assert type(data.parts.train.images).__name__ == ("MemoryImages" if size == (32, 32) else "ParquetImages")
    assert torch.cat([batch.labels for batch in data.train_dataloader()]).bincount().tolist() in (
        [4, 4],
        [3, 5],
        [5, 3],
    )
    assert next(iter(data.val_dataloader())).images.shape[1:] == (3, 32, 32)


def test_an_unreadable_row_is_named(tmp_path):
    write(tmp_path / "a.parquet", [0, 1] * 6)
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    table["image"][7]["bytes"] = table["image"][7]["bytes"][:100]
    table["image"][9]["bytes"] = None
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    settings = {"path": str(tmp_path), "img_size": 32, "in_chans": 3, "batch_size": 4, "num_workers": 0}
    with pytest.raises(UserError, match=r"row 7 of .*a\.parquet cannot be read"):
        ImageData(Parquet(), **settings).prepare()
    data = ImageData(Parquet(), **settings, on_error="skip")
    data.prepare()
    assert data.parts.num_skipped == 2
    assert data.num_train + data.num_val == 10


# -- bad input -------------------------------------------------------------------------------------------------------


def one_line(error, *parts):
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path / "missing.parquet")
    one_line(error, "missing.parquet")


def test_a_folder_without_tables_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, str(tmp_path))


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "a.parquet", "not a Parquet file")


def test_a_table_without_images_says_what_it_has(tmp_path):
    with pytest.raises(UserError) as error:
        load(write(tmp_path / "a.parquet", [0], image="photo"))
    one_line(error, "photo", "data.source.image_column")


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_a_column_that_is_not_there_is_named(tmp_path, column):
    with pytest.raises(UserError) as error:
        load(write(tmp_path / "a.parquet", [0]), **{column: "photo"})
    one_line(error, "photo", f"data.source.{column}")


def test_a_second_table_without_the_columns_is_named(tmp_path):
    write(tmp_path / "train.parquet", [0])
    write(tmp_path / "test.parquet", [0], label="kind")
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "test.parquet", "label")


@pytest.mark.parametrize(("train", "test"), [([0, 1], [2]), (["cat"], ["dog"])])
def test_a_test_class_that_training_lacks_is_refused(tmp_path, train, test):
    write(tmp_path / "train.parquet", train)
    write(tmp_path / "test.parquet", test)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "test", "class")


def test_a_table_of_no_known_split_beside_others_is_named(tmp_path):
    write(tmp_path / "train.parquet", [0])
    write(tmp_path / "extra.parquet", [0])
    with pytest.raises(UserError) as error:
        load(tmp_path)
    one_line(error, "extra.parquet", "data.path={train")
