"""Small image sets on disk, and a source made of tensors."""

import io

import numpy as np
import torch
from PIL import Image

from vitmae.data.splits import MemoryImages, Splits


def picture(seed=0, height=40, width=60, channels=3):
    """A smooth random picture: (H, W, C) uint8, or (H, W) for one channel."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    smooth = Image.fromarray(coarse[..., 0] if channels == 1 else coarse).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.array(smooth)


def encode(image, kind="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def write_classes(folder, counts, **sizes):
    """Class folders with so many pictures each; returns the folder."""
    seed = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(encode(picture(seed, **sizes), "JPEG", quality=95))
            seed += 1
    return folder


class Tensors:
    """A source of random images that are already there; the first pixel of each tells its number."""

    def __init__(self, count=40, size=(8, 8), channels=1, classes=4, labelled=True):
        self.count, self.size, self.channels, self.classes, self.labelled = count, size, channels, classes, labelled

    def load(self, path, img_size, in_chans):
        def split(count):
            generator = torch.Generator().manual_seed(count)
            images = torch.randint(0, 256, (count, self.channels, *self.size), generator=generator, dtype=torch.uint8)
            images[:, 0, 0, 0] = torch.arange(count)
            labels = torch.arange(count) % self.classes if self.labelled else torch.full((count,), -1)
            return MemoryImages(images, labels)

        names = tuple(f"class {number}" for number in range(self.classes)) if self.labelled else None
        return Splits(split(self.count), val=split(self.count // 2), test=split(self.count // 4), class_names=names)
