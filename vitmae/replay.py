"""Replay a step that was not finite: `python -m vitmae.replay bundle=RUN/nonfinite/step7.ckpt`, and find the cause."""

import logging
import sys
from collections.abc import Sequence

from vitmae.command import call_target, command
from vitmae.files import user_path
from vitmae.limits import check_arguments

_MOST_ROWS = 6  # of each stage
_log = logging.getLogger(__name__)


@check_arguments()
def replay(bundle: str, device: str | None = None, trust: Sequence[str] = ()) -> None:
    """Compute a saved step again, and print the tensors that are not finite, in the order of their computation.

    Args:
        bundle: a file in a run's ``nonfinite/``, see `vitmae.training.safety`.
        device: where to compute; None: the GPU, or the CPU on a machine without one.
        trust: full names of further classes that the file may build, see `vitmae.classes`.

    Raises:
        UserError: see `vitmae.training.replay.replay_step`.
    """
    from vitmae.tables import as_text
    from vitmae.trained.device import find_device
    from vitmae.training.replay import replay_step

    found = replay_step(user_path(bundle), find_device(device), trust)
    values = ", ".join(f"{name} {value:.9g}" for name, value in found.values.items())
    _log.info("step %d in %s; the run saw %s", found.step, found.precision, values)
    for rank, losses in enumerate(found.losses):
        _log.info("rank %d: loss %s", rank, ", ".join(f"{loss:.9g}" for loss in losses))
    if not found.findings:
        _log.info("all tensors are finite here: compute on the device of the run, with device=")
        return
    rows = [["stage", "tensor", "shape", "not finite"]]
    for stage in dict.fromkeys(finding.stage for finding in found.findings):
        of_stage = [finding for finding in found.findings if finding.stage == stage]
        for _, name, shape, bad in of_stage[:_MOST_ROWS]:
            rows.append([stage, name, " x ".join(map(str, shape)), str(bad)])
        if len(of_stage) > _MOST_ROWS:
            rows.append([stage, f"and {len(of_stage) - _MOST_ROWS} more", "", ""])
    _log.info("rank %d, batch %d, in the order of computation:\n\n%s", found.rank, found.batch, as_text(rows))


main = command(call_target, "replay")

if __name__ == "__main__":
    sys.exit(main())
