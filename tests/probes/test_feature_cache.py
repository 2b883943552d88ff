import json
import os
import pickle

import numpy
import pytest
import torch

from tests.probes.parts import StandIn
from vitmae.errors import UserError
from vitmae.probes.feature_cache import Content, cached, hash_weights, read, write
from vitmae.probes.features import Features
from vitmae.randomness import generator

CONTENT = Content(weights="abc", data="digits/test", transform={"size": [8, 8]}, model={"num_heads": 3})


def features(count=11, patches=True, dtype=torch.float32):
    def tensor(*shape):
        return torch.randn(*shape, generator=generator(count)).to(dtype)

    pooled = {"cls": tensor(count, 5), "avg": tensor(count, 5)}
    labels = torch.arange(count) - 1
    return Features(pooled, labels, tensor(count, 6, 5) if patches else None, (2, 3))


def in_batches(whole, size=4):
    for ids in torch.arange(len(whole)).split(size):
        yield whole.subset(ids)


def assert_equal(one, other):
    assert list(one.pooled) == list(other.pooled)
    assert all(torch.equal(one.pooled[name], other.pooled[name]) for name in one.pooled)
    assert torch.equal(one.labels, other.labels)
    assert one.grid_size == other.grid_size
    assert (one.patches is None) == (other.patches is None)
    if one.patches is not None:
        assert torch.equal(one.patches, other.patches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_what_is_written_batch_by_batch_is_read_as_a_whole(tmp_path, count, patches, dtype):
    whole = features(count, patches, dtype)
    write(tmp_path / "cache", CONTENT, in_batches(whole))
    assert_equal(read(tmp_path / "cache", CONTENT), whole)


def test_files_are_plain_numpy_arrays(tmp_path):
    write(tmp_path, CONTENT, in_batches(features()))
    path = tmp_path / CONTENT.key / "patches.npy"
    assert path.stat().st_size == 128 + 11 * 6 * 5 * 4  # values begin at a multiple of 64, as the format asks
    array = numpy.load(path, allow_pickle=False)
    assert numpy.array_equal(array, features().patches.numpy())
    about = json.loads((tmp_path / CONTENT.key / "about.json").read_text())
    assert about["content"]["transform"] == {"size": [8, 8]}


def test_features_are_memory_mapped_and_changing_them_changes_no_file(tmp_path):
    write(tmp_path, CONTENT, in_batches(features()))
    once = read(tmp_path, CONTENT)
    path = str(tmp_path / CONTENT.key / "avg.npy")
    with open("/proc/self/maps") as maps:
        assert path in maps.read()
    once.pooled["avg"].zero_()
    assert_equal(read(tmp_path, CONTENT), features())


def test_features_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return in_batches(features())

    assert read(tmp_path, CONTENT) is None
    assert_equal(cached(tmp_path, CONTENT, compute), features())
    assert_equal(cached(tmp_path, CONTENT, compute), features())
    assert len(calls) == 1


def test_every_part_of_the_content_changes_the_key():
    others = [
        Content("abd", CONTENT.data, CONTENT.transform, CONTENT.model),
        Content("abc", "digits/train", CONTENT.transform, CONTENT.model),
        Content("abc", CONTENT.data, {"size": [8, 9]}, CONTENT.model),
        Content("abc", CONTENT.data, CONTENT.transform, {"num_heads": 6}),
    ]
    assert len({content.key for content in [CONTENT, *others]}) == 5
    assert Content("abc", {"a": 1, "b": 2}, None).key == Content("abc", {"b": 2, "a": 1}, None).key


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def interrupted():
        yield features(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, CONTENT, interrupted())
    assert list((tmp_path / CONTENT.key).iterdir()) == []
    assert read(tmp_path, CONTENT) is None


def test_an_entry_appears_at_once_when_it_is_complete(tmp_path):
    def watched():
        for part in in_batches(features()):
            assert read(tmp_path, CONTENT) is None
            yield part

    write(tmp_path, CONTENT, watched())
    assert_equal(read(tmp_path, CONTENT), features())
    names = ["about.json", "avg.npy", "cls.npy", "labels.npy", "patches.npy"]
    assert sorted(os.listdir(tmp_path / CONTENT.key)) == names


def test_files_without_their_description_are_no_entry_and_are_written_again(tmp_path):
    write(tmp_path, CONTENT, in_batches(features(4)))
    (tmp_path / CONTENT.key / "about.json").unlink()
    assert_equal(cached(tmp_path, CONTENT, lambda: in_batches(features())), features())


def test_an_open_reader_keeps_its_features_while_the_same_are_written_again(tmp_path):
    write(tmp_path, CONTENT, in_batches(features()))
    reader = read(tmp_path, CONTENT)
    write(tmp_path, CONTENT, in_batches(features(5)))
    assert_equal(reader, features())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def shorten(path):
    numpy.save(path, numpy.load(path)[:5])


def pickled(path):
    path.write_bytes(pickle.dumps(os.getcwd))


def of_objects(path):
    numpy.save(path, numpy.array([os.getcwd] * 11, dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [truncate, shorten, pickled, of_objects, os.remove])
def test_a_damaged_entry_is_named_and_nothing_is_unpickled(tmp_path, monkeypatch, damage):
    write(tmp_path, CONTENT, in_batches(features()))
    damage(tmp_path / CONTENT.key / "cls.npy")
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("unpickled"))
    with pytest.raises(UserError, match=f"{CONTENT.key} are damaged .*: delete that folder") as caught:
        read(tmp_path, CONTENT)
    assert "\n" not in str(caught.value)


def test_an_entry_with_a_broken_description_is_damaged(tmp_path):
    write(tmp_path, CONTENT, in_batches(features()))
    (tmp_path / CONTENT.key / "about.json").write_text("{")
    with pytest.raises(UserError, match="are damaged"):
        read(tmp_path, CONTENT)


def test_no_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        write(tmp_path, CONTENT, [])
    assert read(tmp_path, CONTENT) is None


def test_the_hash_of_weights_follows_every_value_type_and_buffer_and_nothing_else():
    backbone, same = StandIn(), StandIn()
    same.load_state_dict(backbone.state_dict())
    hashes = [hash_weights(backbone)]
    assert hash_weights(same.train()) == hashes[0]
    same.projection.weight.data[0, 0] += 1e-6
    hashes.append(hash_weights(same))
    same.norm.running_mean[0] = 1
    hashes.append(hash_weights(same))
    hashes.append(hash_weights(same.to(torch.bfloat16)))
    assert len(set(hashes)) == 4


def test_the_hash_of_weights_tells_types_apart_that_have_the_same_bytes():
    hashes = set()
    for dtype in (torch.float32, torch.int32):
        module = torch.nn.Module()
        module.register_buffer("zeros", torch.zeros(3, dtype=dtype))
        hashes.add(hash_weights(module))
    assert len(hashes) == 2
