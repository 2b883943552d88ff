"""The computation as a file, for any batch size: ONNX, or torch.export's program.

The graph normalises: it takes images as float32 in [0, 1].

    encoder               images (B, C, H, W) -> latent (B, prefix + N, D)
    full, vit_classifier  images -> logits (B, K)
    full, vit_mae         images, noise (B, N) -> prediction (B, N, P), mask (B, N), True where hidden; the patches with
                          the least noise are visible, as many as the mask ratio of training leaves

`Objective.published_as` decides which graph `full` is.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitmae.errors import UserError
from vitmae.tokens.masking import Mask, num_visible
from vitmae.weights.formats.plain_vit import require_encoder_only
from vitmae.weights.saved import Saved


class EncoderGraph(nn.Module):
    """An objective's encoder from pixels in [0, 1]."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective

    def normalized(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H, W) as in training."""
        return (images - self.objective.mean) / self.objective.std

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, prefix + N, D)."""
        latent: Tensor = self.objective.backbone(self.normalized(images))
        return latent


class ClassifierGraph(EncoderGraph):
    """A classifier from pixels in [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = self.objective(self.normalized(images))
        return logits


class ReconstructionGraph(EncoderGraph):
    """A masked autoencoder from pixels in [0, 1] and one number per patch that decides what is hidden."""

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, C, H, W), (B, N) -> (B, N, P), (B, N)."""
        visible = num_visible(self.objective.backbone.num_patches, self.objective.mask_ratio)
        ids_shuffle = noise.argsort(dim=1)  # (B, N); ONNX has no stable sort
        ids_restore = ids_shuffle.argsort(dim=1)
        mask = Mask(ids_shuffle[:, :visible], ids_shuffle[:, visible:], ids_restore, ids_restore >= visible)
        return self.objective.reconstruct(self.normalized(images), mask), mask.mask


def write_onnx(objective: Any, saved: Saved, what: str, folder: Path) -> None:
    """Write `model.onnx`.

    Args:
        objective: as `rebuild` makes it.
        saved: what it was made from.
        what: full or encoder.
        folder: an existing one.

    Raises:
        UserError: the model cannot be one graph, or the packages for it are not installed.
    """
    try:
        import onnx  # noqa: F401 (used by torch)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("format=onnx needs more packages: pip install 'vitmae[onnx]'") from error
    program, inputs, outputs = _program(objective, saved, what, "onnx")
    onnx_program: Any = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    onnx_program.save(folder / "model.onnx", external_data=False)


def write_torch_export(objective: Any, saved: Saved, what: str, folder: Path) -> None:
    """Write `model.pt2`, which `torch.export.load` opens.

    Args: as `write_onnx`.

    Raises:
        UserError: the model cannot be one graph.
    """
    program, _, _ = _program(objective, saved, what, "torch_export")
    torch.export.save(program, folder / "model.pt2")


def _program(objective: Any, saved: Saved, what: str, layout: str) -> tuple[Any, list[str], list[str]]:
    """The exported program, the names of its inputs and of its outputs."""
    backbone = objective.backbone
    images = torch.rand(2, backbone.in_chans, *backbone.img_size)
    if what == "encoder":
        module, inputs, outputs = EncoderGraph(objective), {"images": images}, ["latent"]
    elif objective.published_as == "vit_classifier":
        module, inputs, outputs = ClassifierGraph(objective), {"images": images}, ["logits"]
    elif objective.published_as == "vit_mae":
        inputs = {"images": images, "noise": torch.rand(2, backbone.num_patches)}
        module, outputs = ReconstructionGraph(objective), ["prediction", "mask"]
    else:
        require_encoder_only(saved.objective, what, layout)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), tuple(inputs.values()), dynamic_shapes={name: {0: batch} for name in inputs}, strict=True
        )
    return program, list(inputs), outputs
