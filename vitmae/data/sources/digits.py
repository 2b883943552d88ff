"""Handwritten digits: 1,797 grey images of 8 x 8 pixels, 10 classes, that come with scikit-learn.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998). In the file's order the last
360 images were written by other people than the first; they are the test split.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitmae.data.splits import MemoryImages, Paths, Splits, Stats
from vitmae.errors import UserError

_NUM_TEST = 360
_MOST_INK = 16  # a value is the ink in 4 x 4 pixels of a bitmap


class Digits:
    """scikit-learn's digits."""

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """Load them: training 1,437 images, test 360, no validation split; 8 x 8 pixels whatever ``img_size`` is.

        Raises:
            UserError: ``in_chans`` is not 1, or a path is given, from which nothing would be read.
        """
        if path is not None:
            raise UserError(f"data.path={path}: digits come with scikit-learn: leave it out")
        if in_chans != 1:
            raise UserError(f"the digits have 1 channel, not {in_chans}: set data.in_chans=1")
        table = read_table()
        ink = np.rint(table[:, :64] * (255 / _MOST_INK)).astype(np.uint8)
        images = torch.from_numpy(ink).view(-1, 1, 8, 8)
        labels = torch.from_numpy(table[:, 64].astype(np.int64))
        return Splits(
            train=MemoryImages(images[:-_NUM_TEST], labels[:-_NUM_TEST]),
            test=MemoryImages(images[-_NUM_TEST:], labels[-_NUM_TEST:]),
            class_names=tuple("0123456789"),
            stats=Stats((0.3054,), (0.3753,)),  # of the 1,437
        )


def read_table() -> NDArray[np.float64]:
    """The file of `sklearn.datasets.load_digits`: (1797, 65), 64 values from 0 to 16 and the digit.

    It is read directly, because importing scikit-learn takes longer than the rest of the start of a small run.
    """
    package = find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    for folder in folders:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
