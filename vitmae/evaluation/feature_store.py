"""A checkpoint as probes see it: frozen, in eval mode, nothing hidden.

    checkpoint -> objective (at another image size: positions interpolated) -> its backbone -> features, cached on disk

Shapes: M images, D width, N patches.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from vitmae.allocator import keep_freed_memory
from vitmae.batch import Batch
from vitmae.data.datamodule import ImageData
from vitmae.limits import check_arguments
from vitmae.probes import feature_cache as store
from vitmae.probes.features import Features, extract_batches
from vitmae.tokens.patches import Size, pair
from vitmae.weights.load import load_weights
from vitmae.weights.saved import Saved, build_objective, rebuild

Split = Literal["train", "val", "test"]

_log = logging.getLogger(__name__)


class Encoder:
    """A frozen backbone, and the objective it was trained with.

    Args:
        saved: what was read.
        img_size: (H, W) of the images to come; None as it was trained.
        untrained: fresh weights of the same settings and seed instead of those saved.
        autocast: compute in this type under autocast; None computes in float32.
        device: where it runs.

    Attributes:
        name: "trained" or "untrained".
        saved: what was read.
        objective: the LightningModule, in eval mode, without gradients.
        backbone: its encoder.

    Raises:
        UserError: the images' size does not fit the patches.
    """

    def __init__(
        self,
        saved: Saved,
        *,
        img_size: Size | None = None,
        untrained: bool = False,
        autocast: torch.dtype | None = None,
        device: torch.device,
    ) -> None:
        self.name, self.saved = "untrained" if untrained else "trained", saved
        trained_size = pair(saved.settings["backbone"]["img_size"])
        if img_size is not None and img_size != trained_size:
            backbone = {**saved.settings["backbone"], "img_size": list(img_size)}
            resized = replace(saved, settings={**saved.settings, "backbone": backbone})
        else:
            resized = saved
        if untrained:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(saved.settings.get("seed", 0))
                self.objective = build_objective(resized)
        elif resized is saved:
            self.objective = rebuild(saved)
        else:
            self.objective = build_objective(resized)
            report = load_weights(self.objective, str(saved.path))
            sizes = [f"{height} x {width}" for height, width in (trained_size, self.objective.backbone.img_size)]
            _log.info(
                "trained at %s, seen at %s: %.1f%% of the encoder interpolated, %.1f%% as it was",
                *sizes,
                100 * report.share("encoder", "resampled", "recomputed"),
                100 * report.share("encoder", "loaded"),
            )
        self.objective.eval().requires_grad_(False).to(device)
        self.backbone = self.objective.backbone
        self.backbone.use_fused_attention(device.type != "cpu" or autocast is None)
        if device.type == "cpu":
            keep_freed_memory()
        self.autocast = autocast
        self.device = device

    def encode(self, batches: Iterable[Batch], patches: bool = False) -> Iterator[Features]:
        """Features batch by batch, see `vitmae.probes.features.extract_batches`."""
        normalize = self.objective.normalize
        return extract_batches(self.backbone, batches, normalize, patches=patches, autocast=self.autocast)

    def logits(self, images: Tensor) -> Tensor:
        """What its own classifier says of (B, C, H, W) uint8 images: (B, K) float32, on the CPU."""
        with torch.no_grad(), torch.autocast(self.device.type, self.autocast, self.autocast is not None):
            logits: Tensor = self.objective(self.objective.normalize(images.to(self.device)))
        return logits.float().cpu()


class FeatureStore:
    """Features of the splits of one set, made once and then read from the disk.

    Args:
        encoder: makes them.
        data: prepared.
        root: the folder of all cached features.
        limit: at most so many images of each split; None: all.
        token_images: at most so many where patch tokens are kept, which take N times the space; None: all.

    """

    @check_arguments()
    def __init__(
        self,
        encoder: Encoder,
        data: ImageData,
        root: Path,
        *,
        limit: Annotated[int, Ge(1)] | None,
        token_images: Annotated[int, Ge(1)] | None,
    ) -> None:
        self.encoder, self.data, self.root = encoder, data, root
        self.limit, self.token_images = limit, token_images
        self._weights = store.hash_weights(encoder.backbone)
        self._fingerprints: dict[tuple[Split, int | None], str] = {}

    def __call__(self, split: Split, patches: bool = False) -> Features:
        """The features of a split, memory-mapped: (M, D) per pooling, with ``patches`` also (M, N, D)."""
        limit = self._token_limit if patches else self.limit
        content = self._content(split, limit, patches)
        if not patches:  # they may have been made together with the patch tokens of the same images
            features = store.read(self.root, self._content(split, limit, True))
            if features is not None:
                return replace(features, patches=None)
        batches = self.data.evaluation_dataloader(split, limit)
        return store.cached(self.root, content, lambda: self.encoder.encode(batches, patches))

    def _content(self, split: Split, limit: int | None, patches: bool) -> store.Content:
        backbone, normalization = self.encoder.backbone, self.encoder.objective
        if (split, limit) not in self._fingerprints:  # of a set in memory, a hash of all pixels
            self._fingerprints[split, limit] = self.data.fingerprint(split, limit)
        name = self.encoder.saved.settings["backbone"].get("name")  # of two that differ in what is no weight
        return store.Content(
            weights=self._weights,
            data=self._fingerprints[split, limit],
            transform=[backbone.img_size, normalization.mean.flatten().tolist(), normalization.std.flatten().tolist()],
            model=[type(backbone).__name__, name, backbone.num_heads, str(self.encoder.autocast), patches],
        )

    def masks(self, split: Split) -> Tensor:
        """The class of every pixel of the images whose patch tokens are kept: (M, H, W) uint8.

        Raises:
            UserError: the set has no masks.
        """
        batches = self.data.evaluation_dataloader(split, self._token_limit, masks=True)
        return torch.cat([batch.masks for batch in batches])

    @property
    def _token_limit(self) -> int | None:
        return min((limit for limit in (self.limit, self.token_images) if limit is not None), default=None)
