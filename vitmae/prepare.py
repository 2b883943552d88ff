"""Shrink a folder of images: `python -m vitmae.prepare src=photos/ dst=photos-256/`; the same command resumes."""

import logging
import sys
import time
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vitmae.command import call_target, command
from vitmae.files import as_line, user_path
from vitmae.limits import Text, check_arguments

_log = logging.getLogger(__name__)
_LOG_EVERY = 10  # seconds between two lines of progress


@check_arguments()
def prepare(
    src: Text,
    dst: Text,
    short_side: Annotated[int, Ge(1)] = 256,
    quality: Annotated[int, Ge(1), Le(100)] = 90,
    nearest: bool = False,
    num_workers: Annotated[int, Ge(1), Le(1024)] | Literal["auto"] = "auto",
) -> None:
    """Copy a folder of images; larger ones are shrunk until their short side has `short_side` pixels.

    Args:
        src: the folder of images; it is only read.
        dst: the folder of the copy: a new one, or one that was begun with the same settings.
        short_side: in pixels; smaller images are copied as they are.
        quality: the quality of JPEG and WebP files.
        nearest: take the nearest pixel instead of an average; for masks, whose pixels are classes.
        num_workers: the number of threads; "auto": one per core.

    Raises:
        UserError: see `vitmae.data.shrink.shrink_folder`.
    """
    from vitmae.data.part_loader import workers_for
    from vitmae.data.shrink import LEFT_OUT, Shrinking, shrink_folder

    source, target = user_path(src), user_path(dst)
    start = said = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > _LOG_EVERY:
            said = time.monotonic()
            _log.info("%d of %d files, %.0f a second", done, total, done / (said - start))

    how = Shrinking(short_side, quality, nearest)
    tally = shrink_folder(source, target, how, workers_for(num_workers, 1), report)
    _log.info("%s: %s", target, ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.counts.items())))
    for name, reason in tally.left_out[:10]:
        _log.warning("left out: %s: %s", as_line(name), reason)
    if len(tally.left_out) > 10:
        _log.warning("and %d more, see %s", len(tally.left_out) - 10, target / LEFT_OUT)


main = command(call_target, "prepare", keeps="finished images are kept")

if __name__ == "__main__":
    sys.exit(main())
