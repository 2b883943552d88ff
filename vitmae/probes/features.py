"""Features of a frozen backbone: each image once, with nothing hidden and nothing random.

    uint8 images -> normalize -> backbone (eval mode, no gradient) -> CLS | mean of the patches | patches

All probes of a checkpoint use these tensors, so they measure the same. A backbone with a CLS token gives both poolings:
which one is better depends on the objective, and a result without its pooling cannot be reproduced.

Shapes: M images of a set, B batch, C channels, H W image, N patches, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vitmae.backbones.backbone import Backbone
from vitmae.batch import Batch
from vitmae.errors import UserError
from vitmae.randomness import permutation
from vitmae.tokens.patches import Size

POOLINGS = ("cls", "avg")


@dataclass(frozen=True)
class Features:
    """The features of a set of images.

    Attributes:
        pooled: per pooling ("cls", "avg"), one vector per image: (M, D).
        labels: (M,) int64; -1 for an image without a label.
        patches: the patch tokens, row by row, without prefix tokens: (M, N, D); None unless requested.
        grid_size: (grid_h, grid_w) of ``patches``, N = grid_h * grid_w.
    """

    pooled: Mapping[str, Tensor]
    labels: Tensor
    patches: Tensor | None = None
    grid_size: Size | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """One more than the largest label.

        Raises:
            UserError: the set is empty, or an image has no label.
        """
        require_labels(self)
        return int(self.labels.max()) + 1

    def subset(self, ids: Tensor) -> "Features":
        """The images at ``ids`` (int64), in that order."""
        return Features(
            {pooling: vectors[ids] for pooling, vectors in self.pooled.items()},
            self.labels[ids],
            None if self.patches is None else self.patches[ids],
            self.grid_size,
        )


def require_labels(*sets: Features) -> None:
    """Check that sets have images, and that each image has a label.

    Raises:
        UserError: a set is empty, or an image has no label.
    """
    for features in sets:
        unlabelled = int((features.labels < 0).sum())
        if unlabelled or not len(features):
            raise UserError(
                f"a probe needs labelled images, but {unlabelled} of {len(features)} have no label: "
                "choose a labelled data set, or class subfolders"
            )


def require_patches(features: Features) -> Tensor:
    """The patch tokens: (M, N, D).

    Raises:
        UserError: the features have none.
    """
    if features.patches is None:
        raise UserError("this probe reads patch tokens, and the features have none: extract them with patches")
    return features.patches


def extract(
    backbone: Backbone,
    batches: Iterable[Batch],
    normalize: Callable[[Tensor], Tensor],
    *,
    patches: bool = False,
    autocast: torch.dtype | None = None,
) -> Features:
    """Encode a whole set into the CPU's memory, which must hold the result twice.

    For larger sets, pass `extract_batches` to `vitmae.probes.feature_cache.write`.

    Args: as `extract_batches`.

    Raises:
        UserError: as `extract_batches`; or there are no images.
    """
    parts = list(extract_batches(backbone, batches, normalize, patches=patches, autocast=autocast))
    if not parts:
        raise UserError("there are no images to extract features from: check the split and its folder")
    return Features(
        {pooling: torch.cat([part.pooled[pooling] for part in parts]) for pooling in parts[0].pooled},
        torch.cat([part.labels for part in parts]),
        torch.cat([part.patches for part in parts if part.patches is not None]) if patches else None,
        backbone.grid_size,
    )


def extract_batches(
    backbone: Backbone,
    batches: Iterable[Batch],
    normalize: Callable[[Tensor], Tensor],
    *,
    patches: bool = False,
    autocast: torch.dtype | None = None,
) -> Iterator[Features]:
    """Encode batch by batch, in constant memory; the features are float32, on the CPU.

    The backbone is in eval mode while it encodes. Between batches, each module is in its own mode.

    Args:
        backbone: any backbone; images are copied to the device of its parameters.
        batches: uint8 images and labels.
        normalize: (B, C, H, W) uint8 -> float, as in the training of the backbone.
        patches: return the patch tokens too (N times the memory).
        autocast: compute in this type under autocast; None: in the type of the backbone.

    Raises:
        UserError: features are not finite.
    """
    device = next(backbone.parameters()).device
    for batch in batches:
        images = batch.images.to(device, non_blocking=True)
        enabled = autocast is not None
        # not inference mode: its tensors cannot be saved for a head's backward pass
        with _evaluating(backbone), torch.no_grad(), torch.autocast(device.type, autocast, enabled):
            latent = backbone(normalize(images))  # (B, prefix + N, D)
        latent = latent.float()
        if not torch.isfinite(latent).all():
            raise UserError("the backbone's features are not finite: take an earlier checkpoint")
        tokens = latent[:, backbone.num_prefix_tokens :]  # (B, N, D)
        pooled = {"cls": latent[:, 0].to("cpu", copy=True)} if backbone.has_cls else {}
        yield Features(
            pooled | {"avg": tokens.mean(1).cpu()},
            batch.labels.cpu(),
            tokens.to("cpu", copy=True) if patches else None,
            backbone.grid_size,
        )


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    """Eval mode inside the block; afterwards each module is in its own mode (frozen ones stay in eval mode)."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def stratified_split(labels: Tensor, fraction: float, *key: int | str) -> tuple[Tensor, Tensor]:
    """Hold out a fraction of every class: labels (M,) -> ids of the other images, ids of the held-out ones, ascending.

    A class with two or more images has at least one on each side; the only image of a class is not held out.

    Args:
        labels: (M,) int64.
        fraction: share of the held-out images, in (0, 1).
        key: of the random numbers, such as a seed; the same key gives the same split.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        ids = (labels == label).nonzero()[:, 0]  # (images of the class,)
        count = min(max(round(len(ids) * fraction), 1), len(ids) - 1)
        held_out[ids[permutation(len(ids), *key, "split", label)[:count]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
