"""Hide and predict a part of each image of a folder -> one score per image, one error per patch, pictures.

    scores.csv        path, score and the place of the worst patch; in the order of the images
    errors.npy        (images, grid_h, grid_w) float32; nan: the patch was not predicted, or the image cannot be read
    panels/           pictures of the images with the largest scores; 0001.png has the largest

Only the scores are held in memory for the whole folder.

Shapes: B images of a batch, N = grid_h * grid_w patches.
"""

import csv
import heapq
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitmae.atomic import make_folder
from vitmae.errors import UserError
from vitmae.plots.error_map import error_map_figure
from vitmae.randomness import fold, fold_each, fold_indices, uniform
from vitmae.tokens.masking import Mask, mask_from_tensor
from vitmae.trained.images import FolderImages
from vitmae.trained.masks import MaskLike
from vitmae.trained.model import Model
from vitmae.trained.reconstruction import Reconstruction

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconstructedFolder:
    """The result of `reconstruct_folder`.

    Attributes:
        count: number of scored images.
        mean: the mean of their scores.
        unreadable: one line for each file that was left out.
    """

    count: int
    mean: float
    unreadable: list[str]


def complementary_masks(keys: Tensor, num_patches: int, passes: int) -> list[Mask]:
    """Masks that together hide each patch exactly once: one key per image (B,) -> a list of `passes` masks (B, N).

    The groups of patches are drawn per image. If N is no multiple of `passes`, their sizes differ by one.

    Raises:
        UserError: `passes` is not between 2 and N.
    """
    if not 2 <= passes <= num_patches:
        raise UserError(f"passes={passes}: must be between 2 and {num_patches}, the number of patches")
    order = uniform(fold_each(keys, "passes"), num_patches).argsort(dim=1, stable=True)  # (B, N)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(num_patches).expand_as(order))
    group = ranks * passes // num_patches  # (B, N), 0 to passes - 1
    return [mask_from_tensor(group == number) for number in range(passes)]


def reconstruct_passes(model: Model, images: Tensor, keys: Tensor, passes: int) -> Reconstruction:
    """Predict every patch from others, in several passes: images (B, C, H, W) uint8, one key per image (B,).

    Raises:
        UserError: see `complementary_masks`.
    """
    masks = complementary_masks(keys, model.backbone.num_patches, passes)
    parts = [model.reconstruct_batch(images, mask) for mask in masks]
    prediction, error = parts[0].prediction, parts[0].error
    for part in parts[1:]:
        patch = model.backbone.patch_size
        hidden = part.mask.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)[:, None]  # (B, 1, H, W)
        prediction = torch.where(hidden, part.prediction, prediction)
        error = torch.where(part.mask, part.error, error)
    everywhere = torch.ones_like(parts[0].mask)
    return replace(parts[0], prediction=prediction, pasted=prediction, mask=everywhere, error=error)


def reconstruct_folder(
    model: Model,
    folder: FolderImages,
    out: Path,
    *,
    mask: MaskLike,
    passes: int | None,
    panels: int | None,
    batch_size: int,
    num_workers: int | Literal["auto"],
    seed: int,
) -> ReconstructedFolder:
    """Write scores, errors and pictures of a folder's images.

    Args:
        model: a model with a trained decoder.
        folder: the images, with the model's preprocessing.
        out: a new or empty folder.
        mask: see `Model.reconstruct`.
        passes: the number of passes that hide each patch once, instead of `mask`; None: use `mask`.
        panels: the number of pictures, of the images with the largest scores; None: one of each image.
        batch_size: images per batch.
        num_workers: see `FolderImages.batches`.
        seed: the seed of masks that are drawn; a mask depends on the seed and the image's number in the folder.

    Raises:
        UserError: `out` is not empty or cannot be written, or see `Model.reconstruct`.
    """
    model.require_decoder()
    _check_masks(model, mask, passes)
    if os.path.lexists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise UserError(f"out={out} is there already: remove it, or choose another name")
    make_folder(out, f"out={out}")
    errors = np.lib.format.open_memmap(out / "errors.npy", "w+", np.float32, (len(folder), *model.grid_size))
    errors[:] = np.nan
    oddest: list[tuple[float, int]] = []
    unreadable: list[str] = []
    scores: list[float] = []
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "score", "worst_error", "worst_row", "worst_column"])
        for batch in folder.batches(batch_size, num_workers):
            unreadable += batch.unreadable
            if not batch.numbers:
                continue
            result = _reconstruct(model, batch.images, batch.numbers, mask, passes, seed)
            for number, score, error in zip(batch.numbers, result.score.tolist(), result.error.numpy(), strict=True):
                if not np.isfinite(score):
                    raise UserError(
                        f"{model.saved.path} predicts NaN or infinite values for {folder.name(number)}: "
                        "set precision=32-true, or take an earlier checkpoint"
                    )
                errors[number] = error
                worst = np.unravel_index(np.nanargmax(error), error.shape)
                rows.writerow([folder.path(number), f"{score:.6g}", f"{error[worst]:.6g}", *map(int, worst)])
                heapq.heappush(oddest, (score, -number))
                if panels is not None and len(oddest) > panels:
                    heapq.heappop(oddest)
            scores += result.score.tolist()
            _log.info("%d of %d images", len(scores) + len(unreadable), len(folder))
    if not scores:
        raise UserError("none of the images can be read: see the warnings above")
    errors.flush()
    (out / "panels").mkdir()
    for place, (score, number) in enumerate(sorted(oddest, reverse=True), start=1):
        _save_panel(model, folder, -number, score, mask, passes, seed, out / "panels" / f"{place:04d}.png")
    return ReconstructedFolder(len(scores), float(np.mean(scores)), unreadable)


def _check_masks(model: Model, mask: MaskLike, passes: int | None) -> None:
    """Refuse masks that do not fit the model, before anything is written."""
    keys = torch.zeros(1, dtype=torch.int64)
    if passes is None:
        model.mask(mask, keys)
    else:
        complementary_masks(keys, model.backbone.num_patches, passes)


def _reconstruct(
    model: Model, images: Tensor, numbers: list[int], mask: MaskLike, passes: int | None, seed: int
) -> Reconstruction:
    keys = fold_indices(fold(seed, "reconstruct"), torch.tensor(numbers))
    if passes is not None:
        return reconstruct_passes(model, images, keys, passes)
    return model.reconstruct_batch(images, model.mask(mask, keys))


def _save_panel(
    model: Model,
    folder: FolderImages,
    number: int,
    score: float,
    mask: MaskLike,
    passes: int | None,
    seed: int,
    path: Path,
) -> None:
    """Save one picture; the image is read and predicted again, so that no picture is held in memory."""
    name = folder.name(number)
    result = _reconstruct(model, folder.preprocess(folder.files.path(number), name)[None], [number], mask, passes, seed)
    pictures = {"original": result.original[0]}
    if passes is None:
        pictures |= {"masked": result.masked[0], "prediction": result.prediction[0], "pasted": result.pasted[0]}
    else:
        pictures |= {"each patch from the others": result.prediction[0]}
    figure = error_map_figure(pictures, result.error[0], f"{Path(name).name}   score {score:.4g}", result.target)
    figure.savefig(path, dpi=110)
