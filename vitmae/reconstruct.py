"""Reconstruct a folder: `python -m vitmae.reconstruct ckpt=last images=photos/ passes=4`; scores and pictures."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vitmae.command import call_target, command
from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.limits import Seed, Text, check_arguments

_log = logging.getLogger(__name__)


@check_arguments()
def reconstruct(
    ckpt: Text,
    images: Text,
    out: Text = "reconstructions",
    mask: float | Text | None = None,
    passes: Annotated[int, Ge(2)] | None = None,
    panels: Annotated[int, Ge(0)] | None = 32,
    batch_size: Annotated[int, Ge(1)] = 32,
    num_workers: Annotated[int, Ge(0), Le(1024)] | Literal["auto"] = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    seed: Seed = 0,
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
    device: Text | None = None,
    runs: Text = "runs",
    trust: Sequence[Text] = (),
) -> None:
    """Hide a part of each image, predict it, and write scores, errors and pictures.

    The objective of the checkpoint must be one that reconstructs, such as MAE.

    Args:
        ckpt: see `vitmae.trained.model.find_model`.
        images: see `vitmae.trained.images.FolderImages`.
        out: a new folder.
        mask: what to hide, see `vitmae.trained.masks.read_mask`.
        passes: instead of `mask`: this number of masks, which together hide each patch once.
        panels: the number of pictures; None: one of each image.
        batch_size: images per batch.
        num_workers: processes that decode; 0: this process; "auto": one per core.
        on_error: whether an image that cannot be read ends the command, or is left out.
        seed: the seed of masks that are drawn.
        precision: see `vitmae.trained.model.Model`.
        device: where the model runs; None: the GPU, or the CPU on a machine without one.
        runs: the folder in which ``ckpt=last`` looks for runs.
        trust: full names of further classes that the checkpoint may build, see `vitmae.classes`.

    Raises:
        UserError: see `vitmae.trained.reconstruct_folder.reconstruct_folder`.
    """
    if mask is not None and passes is not None:
        raise UserError(f"mask={mask} and passes={passes} exclude each other: leave one out")
    if not out:
        raise UserError("out= is empty: name a new folder")

    from vitmae.trained.images import FolderImages
    from vitmae.trained.masks import read_mask
    from vitmae.trained.model import find_model, open_model
    from vitmae.trained.reconstruct_folder import reconstruct_folder

    model = open_model(find_model(ckpt, runs), device, precision, trust)
    model.require_decoder()
    folder = FolderImages(images, model.preprocess, skip_unreadable=on_error == "skip")
    place = user_path(out)
    done = reconstruct_folder(
        model,
        folder,
        place,
        mask=read_mask(mask, model.preprocess, model.grid_size),
        passes=passes,
        panels=panels,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
    )
    for line in done.unreadable:
        _log.warning("left out: %s", line)
    _log.info("%s: %d images, mean score %.4g, %d left out", place, done.count, done.mean, len(done.unreadable))


main = command(call_target, "reconstruct")

if __name__ == "__main__":
    sys.exit(main())
