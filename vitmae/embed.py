"""Embed a folder: `python -m vitmae.embed ckpt=last images=photos/ out=features.parquet`; a killed run is resumed."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vitmae.command import call_target, command
from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.limits import Text, check_arguments

_log = logging.getLogger(__name__)


@check_arguments()
def embed(
    ckpt: Text,
    images: Text,
    out: Text = "features.parquet",
    pooling: Literal["cls", "avg"] | None = None,
    batch_size: Annotated[int, Ge(1)] = 64,
    num_workers: Annotated[int, Ge(0), Le(1024)] | Literal["auto"] = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto",
    device: Text | None = None,
    runs: Text = "runs",
    trust: Sequence[Text] = (),
) -> None:
    """Write one vector per image of a folder into a Parquet table.

    Args:
        ckpt: see `vitmae.trained.model.find_model`.
        images: see `vitmae.trained.images.FolderImages`.
        out: the Parquet file.
        pooling: see `vitmae.trained.model.Model.encode`.
        batch_size: images per batch.
        num_workers: processes that decode; 0: this process; "auto": one per core.
        on_error: whether an image that cannot be read ends the command, or is left out.
        precision: see `vitmae.trained.model.Model`.
        device: where the model runs; None: the GPU, or the CPU on a machine without one.
        runs: the folder in which ``ckpt=last`` looks for runs.
        trust: full names of further classes that the checkpoint may build, see `vitmae.classes`.

    Raises:
        UserError: see `vitmae.trained.embed_folder.embed_folder`.
    """
    table = user_path(out)
    if table.suffix != ".parquet":
        raise UserError(f"out={out}: the name must end in .parquet")

    from vitmae.trained.embed_folder import embed_folder
    from vitmae.trained.images import FolderImages
    from vitmae.trained.model import find_model, open_model

    model = open_model(find_model(ckpt, runs), device, precision, trust)
    folder = FolderImages(images, model.preprocess, skip_unreadable=on_error == "skip")
    done = embed_folder(model, folder, table, pooling=pooling, batch_size=batch_size, num_workers=num_workers)
    for line in done.unreadable:
        _log.warning("left out: %s", line)
    _log.info("%s: %d vectors of width %d, %d images left out", table, done.count, done.width, len(folder) - done.count)


main = command(call_target, "embed", keeps="finished chunks are kept")

if __name__ == "__main__":
    sys.exit(main())
