"""vitmae: what does masking buy? Supervised ViT, masked patch prediction and MAE over one backbone."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from vitmae.trained.model import Model, Precision

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # python -m vitmae.<command>: a signal is answered while its module is imported, too
    from vitmae.interruption import interruption

    interruption.listen()


def load(
    path: "str | Path",
    device: "str | torch.device | None" = None,
    precision: "Precision" = "auto",
    trust: "Sequence[str]" = (),
) -> "Model":
    """Open a trained model to encode, reconstruct or classify images.

    Args:
        path: a run directory (its best checkpoint, else its last), a checkpoint, a bundle, or its name on the hub.
        device: where the model runs; None: the GPU, or the CPU on a machine without one.
        precision: 32-true, bf16-mixed, or auto: bf16-mixed where the device computes in it, else 32-true.
        trust: full names of further classes that the file may build, see `vitmae.classes`.

    Raises:
        vitmae.errors.UserError: there is no model at the path, the file is damaged, it builds a class that is not
            allowed, or the device or the precision does not exist.
    """
    from vitmae.trained.model import open_model  # here, so that `import vitmae` stays fast

    return open_model(path, device, precision, trust)
