"""A part of a set, and how its images are to be seen -> a loader of batches."""

import os
from typing import Literal

import torch

from vitmae.data.crops import View
from vitmae.data.loader import Loader, Requests
from vitmae.data.readers import EncodedReader, FixedSizeReader
from vitmae.data.splits import EncodedImages, FixedSizeImages
from vitmae.data.subsets import Part


def part_loader(
    part: Part,
    requests: Requests,
    view: View,
    *,
    in_chans: int,
    seed: int,
    num_workers: int | Literal["auto"],
    skip_unreadable: bool,
    masks: bool,
    device: torch.device,
    processes: int,
) -> Loader:
    """The batches of some images: decoded by workers, or cut from memory.

    Args:
        part: the images.
        requests: in which order.
        view: how they are cropped and flipped.
        in_chans: C.
        seed: of crops, flips and keys.
        num_workers: processes that make batches; "auto": see `workers_for`, and none for images of a fixed size.
        skip_unreadable: leave out what cannot be read.
        masks: with the class of every pixel.
        device: where batches go; images in memory move there as a whole, if no worker cuts them.
        processes: how many share this machine.
    """
    if isinstance(part.images, EncodedImages):
        workers = min(workers_for(num_workers, processes), max(len(requests) - 1, 0))  # one batch is here sooner
        reader = EncodedReader(
            part.images, part.indices, view, in_chans, seed, skip_unreadable=skip_unreadable, masks=masks
        )
        return Loader(reader, requests, workers, pin_memory=device.type == "cuda")
    assert isinstance(part.images, FixedSizeImages)
    workers = 0 if num_workers == "auto" else num_workers
    # Without workers a set in memory moves to the device as a whole, and is cropped and flipped there.
    images = part.images if workers else part.images.to(device)
    return Loader(
        FixedSizeReader(images, part.indices, view, seed, masks=masks),
        requests,
        workers,
        pin_memory=device.type == "cuda" and workers > 0,
    )


def workers_for(num_workers: int | Literal["auto"], processes: int) -> int:
    """How many workers a process has that decodes: the number given, or for "auto" its share of the cores, up to 16.

    Args:
        num_workers: the setting.
        processes: how many processes share this machine.
    """
    if num_workers != "auto":
        return num_workers
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, here // processes))
