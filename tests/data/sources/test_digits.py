import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitmae.data.sources import digits
from vitmae.data.sources.digits import Digits, read_table
from vitmae.errors import UserError


def test_the_table_is_scikit_learns():
    theirs = load_digits()
    table = read_table()
    np.testing.assert_array_equal(table[:, :64], theirs.data)
    np.testing.assert_array_equal(table[:, 64], theirs.target)


def test_another_place_of_the_file_is_asked_of_scikit_learn(monkeypatch):
    here = read_table()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    np.testing.assert_array_equal(read_table(), here)


def test_loading_does_not_import_scikit_learn():
    import subprocess

    code = "import sys; from vitmae.data.sources.digits import Digits; Digits().load(None, (8, 8), 1); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pixels_fill_the_range_of_a_byte_and_lie_as_they_are_shown():
    theirs = load_digits()
    splits = Digits().load(None, (8, 8), 1)
    assert (len(splits.train), len(splits.test)) == (1437, 360)
    images = np.concatenate([splits.train.images.numpy(), splits.test.images.numpy()])[:, 0]
    np.testing.assert_allclose(images * (16 / 255), theirs.images, atol=0.04)
    assert images.max() == 255
    assert splits.class_names == tuple("0123456789")
    assert splits.train.labels.tolist() + splits.test.labels.tolist() == theirs.target.tolist()


def test_coloured_digits_are_refused():
    with pytest.raises(UserError, match=r"data\.in_chans=1"):
        Digits().load(None, (8, 8), 3)
