"""Handwritten digits: 1,797 grey images of 8 x 8 pixels, 10 classes, that come with scikit-learn.

Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998). In the file's order the last
360 images were written by other people than the first: they are the test split.
"""

import numpy as np
import torch

from vitmae.data.splits import MemoryImages, Paths, Splits, Stats
from vitmae.errors import UserError

_NUM_TEST = 360
_BRIGHTEST = 16   # the file counts the ink in 4 x 4 blocks of a bitmap


class Digits:
    """scikit-learn's digits."""

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """Load them: training 1,437 images, test 360, no validation split; 8 x 8 pixels whatever is asked for.

        Raises:
            UserError: they are asked for in colour.
        """
        if in_chans != 1:
            raise UserError(f"the digits are grey and have no {in_chans} channels: set data.in_chans=1")
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(np.rint(digits.images * (255 / _BRIGHTEST)).astype(np.uint8))[:, None]
        labels = torch.from_numpy(digits.target.astype(np.int64))
        return Splits(
            train=MemoryImages(images[:-_NUM_TEST], labels[:-_NUM_TEST]),
            test=MemoryImages(images[-_NUM_TEST:], labels[-_NUM_TEST:]),
            class_names=tuple("0123456789"),
            stats=Stats((0.3054,), (0.3753,)),   # of the 1,437
        )
