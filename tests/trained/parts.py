"""Small runs and image folders that the tests of this folder share."""

import numpy as np
from PIL import Image

from tests.weights.parts import build, save_checkpoint, settings


def saved_run(folder, kind="mae", seed=0, **model):
    """A run directory with one checkpoint, and the objective in it."""
    made = build(kind, seed=seed, **model)
    save_checkpoint(folder / "checkpoints" / "last.ckpt", made, settings(kind, **model), class_names=list("abcdefghij"))
    return made


def image_folder(folder, count=10, size=(20, 30), broken=()):
    """Pictures in two subfolders; those with a number in `broken` cannot be read."""
    drawn = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("a" if number < count // 2 else "b") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[:60])
    return folder
