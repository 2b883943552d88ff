"""Reconstruct a folder: `python -m vitmae.reconstruct ckpt=last images=photos/ passes=4`; scores and pictures."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from vitmae.command import call_target, command
from vitmae.errors import UserError
from vitmae.limits import check_arguments

_log = logging.getLogger(__name__)


@check_arguments()
def reconstruct(
    ckpt: str,
    images: str,
    out: str = "reconstructions",
    mask: float | str | None = None,
    passes: Annotated[int, Ge(2)] | None = None,
    panels: Annotated[int, Ge(0)] | None = 32,
    batch_size: Annotated[int, Ge(1)] = 32,
    num_workers: Annotated[int, Ge(0)] | Literal["auto"] = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    seed: Annotated[int, Ge(0)] = 0,
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
    device: str | None = None,
    runs: str = "runs",
    trust: Sequence[str] = (),
) -> None:
    """Hide a part of each image, predict it, and write how well that went.

    ckpt, images, batch_size, num_workers, on_error, precision, device, runs and trust are those of
    `vitmae.embed.embed`; the checkpoint's objective must be one that reconstructs. The others:

        out: a folder to be made.
        mask: see `vitmae.trained.masks.read_mask`.
        passes: how many masks hide each patch once, instead of `mask`.
        panels: how many pictures to draw; None: of all images.
        seed: of masks that are drawn.

    Raises:
        UserError: see `vitmae.trained.reconstruct_folder.reconstruct_folder`.
    """
    if mask is not None and passes is not None:
        raise UserError(f"mask={mask} and passes={passes} exclude each other: passes hides each patch once")

    from vitmae.trained.images import FolderImages
    from vitmae.trained.masks import read_mask
    from vitmae.trained.model import find_model, open_model
    from vitmae.trained.reconstruct_folder import reconstruct_folder

    model = open_model(find_model(ckpt, runs), device, precision, trust)
    model.require_decoder()
    folder = FolderImages(images, model.preprocess, skip_unreadable=on_error == "skip")
    place = Path(out).expanduser()
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
