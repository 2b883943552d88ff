"""Some images of a set, and how they are cropped -> a loader of their batches."""

import os
from dataclasses import dataclass, replace
from typing import Literal

import torch

from vitmae.centre_crop import kept_share
from vitmae.data.crops import View
from vitmae.data.loader import Loader, Requests
from vitmae.data.readers import EncodedReader, FixedSizeReader
from vitmae.data.splits import EncodedImages, FixedSizeImages, Images
from vitmae.data.subsets import Part

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PartLoaders:
    """How the images of a part become batches: decoded by workers, or cropped in memory.

    Attributes:
        view: how training images are cropped and flipped.
        crop_pct: what the centre crop of an evaluation keeps; None: see `vitmae.centre_crop.kept_share`.
        in_chans: C.
        seed: of crops, flips and keys.
        num_workers: processes that make batches; "auto": see `workers_for`, and none for images of a fixed size.
        skip_unreadable: leave out images that cannot be read.
    """

    view: View
    crop_pct: float | None
    in_chans: int
    seed: int
    num_workers: int | Literal["auto"]
    skip_unreadable: bool

    def crop_pct_of(self, images: Images) -> float:
        """The share of the shorter side that the centre crop of these images keeps."""
        is_cut = isinstance(images, FixedSizeImages) and images.size == self.view.size
        return kept_share(self.crop_pct, self.view.size, is_cut)

    def load(
        self,
        part: Part,
        requests: Requests,
        *,
        training: bool = False,
        masks: bool = False,
        device: torch.device = _CPU,
        processes: int = 1,
    ) -> Loader:
        """The batches of some images.

        Args:
            part: the images.
            requests: in which order.
            training: crop and flip at random.
            masks: with the class of every pixel.
            device: where batches go; images in memory move there as a whole, if no worker crops them.
            processes: how many share this machine.
        """
        view = replace(self.view, crop_pct=self.crop_pct_of(part.images))
        view = view if training else view.for_evaluation()
        on_gpu = device.type == "cuda"
        if isinstance(part.images, EncodedImages):
            workers = min(workers_for(self.num_workers, processes), max(len(requests) - 1, 0))  # none for one batch
            encoded = EncodedReader(
                part.images,
                part.indices,
                view,
                self.in_chans,
                self.seed,
                skip_unreadable=self.skip_unreadable,
                masks=masks,
            )
            return Loader(encoded, requests, workers, pin_memory=on_gpu)
        assert isinstance(part.images, FixedSizeImages)
        workers = 0 if self.num_workers == "auto" else self.num_workers
        images = part.images if workers else part.images.to(device)
        reader = FixedSizeReader(images, part.indices, view, self.seed, masks=masks)
        return Loader(reader, requests, workers, pin_memory=on_gpu and workers > 0)


def workers_for(num_workers: int | Literal["auto"], processes: int) -> int:
    """How many workers a process decodes with: the given number, or for "auto" its share of the cores, up to 16.

    Args:
        num_workers: the setting.
        processes: how many processes share this machine.
    """
    if num_workers != "auto":
        return num_workers
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, here // processes))
