"""Features of images, from a model that sees all patches; computed once and cached on disk.

Shapes: M images, D width, N patches.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from vitmae.data.datamodule import ImageData
from vitmae.limits import check_arguments
from vitmae.probes import feature_cache
from vitmae.probes.features import Features
from vitmae.trained.model import Model

Split = Literal["train", "val", "test"]


class FeatureStore:
    """The features of each split of a set, computed once and then read from disk.

    Args:
        model: computes the features.
        data: the images, prepared.
        root: the folder of all cached features.
        limit: the largest number of images per split; None: all.
        token_images: the largest number of images for patch tokens, which take N times the space; None: all.
    """

    @check_arguments()
    def __init__(
        self,
        model: Model,
        data: ImageData,
        root: Path,
        *,
        limit: Annotated[int, Ge(1)] | None,
        token_images: Annotated[int, Ge(1)] | None,
    ) -> None:
        self.model, self.data, self.root = model, data, root
        self.limit, self.token_images = limit, token_images
        self._weights = feature_cache.hash_weights(model.backbone)
        self._fingerprints: dict[tuple[Split, int | None], str] = {}

    def __call__(self, split: Split, patches: bool = False) -> Features:
        """The features of a split, memory-mapped: (M, D) per pooling, with ``patches`` also patch tokens (M, N, D)."""
        limit = self._token_limit if patches else self.limit
        content = self._content(split, limit, patches)
        if not patches:  # the cache may hold them together with the patch tokens of the same images
            features = feature_cache.read(self.root, self._content(split, limit, True))
            if features is not None:
                return replace(features, patches=None)
        batches = self.data.evaluation_dataloader(split, limit)
        return feature_cache.cached(self.root, content, lambda: self.model.features(batches, patches))

    def _content(self, split: Split, limit: int | None, patches: bool) -> feature_cache.Content:
        backbone, normalization = self.model.backbone, self.model.objective
        if (split, limit) not in self._fingerprints:  # slow: for a set in memory it is a hash of all pixels
            self._fingerprints[split, limit] = self.data.fingerprint(split, limit)
        name = self.model.saved.settings["backbone"].get("name")  # equal weights are not yet an equal model
        return feature_cache.Content(
            weights=self._weights,
            data=self._fingerprints[split, limit],
            transform=[backbone.img_size, normalization.mean.flatten().tolist(), normalization.std.flatten().tolist()],
            model=[type(backbone).__name__, name, backbone.num_heads, str(self.model.autocast), patches],
        )

    def masks(self, split: Split) -> Tensor:
        """The class of every pixel, for the images of `token_images`: (M, H, W) uint8.

        Raises:
            UserError: the set has no masks.
        """
        batches = self.data.evaluation_dataloader(split, self._token_limit, masks=True)
        return torch.cat([batch.masks for batch in batches])

    @property
    def _token_limit(self) -> int | None:
        return min((limit for limit in (self.limit, self.token_images) if limit is not None), default=None)
