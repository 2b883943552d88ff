import weakref

import numpy
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.probes.parts import clusters
from vitmae.errors import UserError
from vitmae.probes import knn as knn_module
from vitmae.probes.knn import knn, neighbours, predict, tile_sizes
from vitmae.randomness import generator


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=dtype)


def nearest(queries, bank, k, **settings):
    """All blocks of `neighbours` as one."""
    similarities, ids = zip(*neighbours(queries, bank, k, **settings), strict=True)
    return torch.cat(similarities), torch.cat(ids)


def storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors alive that were made inside, at most."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage.data_ptr() for storage in storages(args)}
        out = func(*args, **(kwargs or {}))
        for storage in storages(out):
            pointer = storage.data_ptr()
            if pointer and pointer not in given | self.seen:
                self.seen.add(pointer)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.forget, pointer, storage.nbytes())
        return out

    def forget(self, pointer, nbytes):
        self.seen.discard(pointer)
        self.alive -= nbytes


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_predictions_equal_scikit_learns(k):
    bank, queries = normal(400, 16, dtype=torch.float64), normal(150, 16, seed=1, dtype=torch.float64)
    labels = torch.randint(5, (400,), generator=generator(2))

    def votes(distances):
        return numpy.exp((1 - distances) / 0.07)

    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes).fit(bank, labels)
    expected = torch.from_numpy(reference.predict(queries))
    assert torch.equal(predict(queries, bank, labels, num_classes=5)[k], expected)


def test_neighbours_equal_scikit_learns_in_order():
    bank, queries = normal(400, 16, dtype=torch.float64), normal(150, 16, seed=1, dtype=torch.float64)
    reference = KNeighborsClassifier(metric="cosine", algorithm="brute").fit(bank, torch.zeros(400))
    distances, indices = reference.kneighbors(queries, 20)
    similarities, ids = nearest(queries, bank, 20)
    assert torch.equal(ids, torch.from_numpy(indices))
    torch.testing.assert_close(similarities, torch.from_numpy(1 - distances))


def test_accuracy_is_reported_for_every_k_and_pooling_with_its_interval():
    train, test = clusters(300), clusters(80, split="test")
    results = knn(train, test)
    assert {pooling: list(by_k) for pooling, by_k in results.items()} == {
        "cls": [1, 5, 20, 100, 200],
        "avg": [1, 5, 20, 100, 200],
    }
    for pooling, by_k in results.items():
        predictions = predict(test.pooled[pooling], train.pooled[pooling], train.labels, num_classes=4)
        for k, result in by_k.items():
            assert result.accuracy == (predictions[k] == test.labels).double().mean()
            assert result.interval[0] < result.accuracy <= result.interval[1]
            assert (result.num_images, result.setting["k"], result.pooling) == (80, k, pooling)
    assert results["avg"][20].accuracy > 0.95


def test_a_nearer_neighbour_outvotes_several_far_ones():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.9]])
    labels = torch.tensor([0, 1, 1])
    assert predict(query, bank, labels, num_classes=2, ks=[3], temperature=0.07)[3].item() == 0
    assert predict(query, bank, labels, num_classes=2, ks=[3], temperature=10.0)[3].item() == 1


@pytest.mark.parametrize("tiles", [(100, 1), (7, 13), (64, 30), (200, 301)])
def test_tiles_change_nothing(monkeypatch, tiles):
    bank, queries = normal(300, 16, dtype=torch.float64), normal(200, 16, seed=1, dtype=torch.float64)
    whole = nearest(queries, bank, 20)
    monkeypatch.setattr(knn_module, "tile_sizes", lambda *args, **kwargs: tiles)
    similarities, ids = nearest(queries, bank, 20)
    assert torch.equal(ids, whole[1])
    torch.testing.assert_close(similarities, whole[0])


def test_equal_neighbours_come_in_the_same_order_each_time():
    repeated = F.one_hot(torch.arange(300) % 3).float()
    assert torch.equal(nearest(repeated, repeated, 20)[1], nearest(repeated, repeated, 20)[1])


def test_a_zero_vector_is_no_neighbour_and_no_error():
    similarities, ids = nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.1, 0.1]]), 2)
    assert ids.tolist() == [[1, 0]]
    torch.testing.assert_close(similarities, torch.tensor([[0.5**0.5, 0.0]]))


@pytest.mark.parametrize("memory", [400_000, 2_000_000])
@pytest.mark.parametrize("ks", [(1, 5), (1, 5, 20, 100, 200)])
@pytest.mark.parametrize("features", ["random", "collapsed", "half"])
def test_working_tensors_stay_within_the_memory_allowed(memory, ks, features):
    bank, queries = normal(3000, 24), normal(250, 24, seed=1)
    if features == "collapsed":
        bank, queries = torch.ones_like(bank), torch.ones_like(queries)
    if features == "half":
        bank, queries = bank.half(), queries.half()
    labels = torch.arange(3000) % 10
    answers = len(ks) * 250 * 8
    with PeakMemory() as measured:
        predict(queries, bank, labels, num_classes=10, ks=ks, memory=memory)
    assert measured.peak <= memory + answers
    assert measured.peak > memory / 4


def test_tile_sizes_take_the_whole_bank_if_half_of_the_memory_holds_it():
    sizes = {"dim": 768, "k": 200, "reserved": 16_000}
    assert tile_sizes(50_000, 50_000, **sizes)[1] == 50_000
    rows, columns = tile_sizes(50_000, 1_281_167, **sizes)
    assert rows * columns * 4 + (rows + columns) * 768 * 4 < 1 << 30
    assert rows > 1000
    assert tile_sizes(3, 50_000, **sizes)[0] == 3


def test_memory_for_not_one_tile_is_refused():
    with pytest.raises(UserError, match="too few for neighbours of width 24"):
        nearest(normal(700, 24), normal(3000, 24), 5, memory=1000)


def test_a_k_above_the_bank_is_left_out_and_refused_if_there_is_no_other():
    bank, labels = normal(30, 4), torch.arange(30) % 2
    assert list(predict(bank, bank, labels, num_classes=2)) == [1, 5, 20]
    assert list(predict(bank, bank, labels, num_classes=2, ks=[30, 31])) == [30]
    with pytest.raises(UserError, match="k must be ≥ 1 and ≤ 30"):
        predict(bank, bank, labels, num_classes=2, ks=[31])
    with pytest.raises(UserError, match="k must be ≥ 1 and ≤ 30"):
        predict(bank, bank, labels, num_classes=2, ks=[0, 5])


def test_a_low_precision_setting_of_training_does_not_reach_the_neighbours():
    bank = normal(500, 512)
    expected = nearest(bank, bank, 5)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            similarities, ids = nearest(bank, bank, 5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(ids, expected[1])
    assert torch.equal(similarities, expected[0])
