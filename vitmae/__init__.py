"""vitmae: what does masking buy? Supervised ViT, masked patch prediction and MAE over one backbone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from vitmae.trained.model import Model, Precision

__version__ = "0.1.0"


def load(
    path: "str | Path",
    device: "str | torch.device | None" = None,
    precision: "Precision" = "auto",
    trust: "Sequence[str]" = (),
) -> "Model":
    """Open a trained model to encode, reconstruct or classify images.

    Args:
        path: a run directory (its best checkpoint, else its last), a checkpoint, a bundle, or the hub's name of one.
        device: where it runs; None: the GPU if there is one.
        precision: what it computes in: 32-true, bf16-mixed, or auto: the latter where the device computes in it.
        trust: full names of classes that the file may build beside those of `vitmae.classes`.

    Raises:
        vitmae.errors.UserError: there is none, it is damaged, it builds what it may not, or there is no such device or
            precision.
    """
    from vitmae.trained.model import open_model  # heavy, and `import vitmae` is not

    return open_model(path, device, precision, trust)
