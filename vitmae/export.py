"""Export a model: `python -m vitmae.export ckpt=last format=timm what=encoder`; `--help` lists the formats."""

import logging
import sys
from collections.abc import Sequence
from typing import Literal

from vitmae.command import call_target, command
from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.limits import Text, check_arguments

_log = logging.getLogger(__name__)


@check_arguments()
def export(
    ckpt: Text,
    format: Literal["bundle", "timm", "hf", "fair", "onnx", "torch_export"] = "bundle",
    what: Literal["encoder", "full"] = "full",
    out: Text | None = None,
    push: Text | None = None,
    runs: Text = "runs",
    trust: Sequence[Text] = (),
) -> None:
    """Write a trained model into a folder, and upload it to the hub if `push` names a repository.

    Args:
        ckpt: see `vitmae.trained.model.find_model`.
        format: the format of the files, see `vitmae.weights.write`.
        what: ``full`` with decoder or head, or the encoder alone.
        out: the folder; None: ``export/<format>-<what>`` in the run's directory, or beside a checkpoint outside a run.
        push: USER/REPO, a repository of the Hugging Face hub that the bundle is uploaded to.
        runs: the folder in which ``ckpt=last`` looks for runs.
        trust: full names of further classes that the checkpoint may build, see `vitmae.classes`.

    Raises:
        UserError: see `vitmae.weights.write.write_weights` and `vitmae.weights.hub.push_bundle`.
    """
    from vitmae.trained.model import find_model
    from vitmae.weights import hub
    from vitmae.weights.saved import home_of, read_saved
    from vitmae.weights.write import write_weights

    if push is not None:
        if format != "bundle":
            raise UserError(f"push={push} uploads a bundle: leave out format={format}")
        hub.check_repository(push)
    saved = read_saved(find_model(ckpt, runs), trust)
    folder = user_path(out) if out else home_of(saved.path) / "export" / f"{format}-{what}"
    for path in write_weights(saved, format, what, folder):
        _log.info("%s  %s kB", path, f"{path.stat().st_size / 1e3:,.0f}")
    if push is not None:
        _log.info("uploaded to %s", hub.push_bundle(folder, push))


main = command(call_target, "export")

if __name__ == "__main__":
    sys.exit(main())
