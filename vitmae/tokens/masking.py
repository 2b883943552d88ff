"""Which patches are hidden, and which are corrupted. Pure functions of per-sample random keys.

`mask` is boolean and **True means hidden**. `ids_keep` holds the positions of the visible patches in a shuffled order,
and `ids_restore` undoes the shuffle (https://arxiv.org/abs/2111.06377, section 3).

Shapes: B batch, N = grid_h * grid_w patches, n visible ones.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.randomness import fold_each, uniform
from vitmae.tokens.patches import Size, gather_tokens

MaskKind = Literal["random", "block", "grid"]

_NUM_BLOCKS = 64  # rectangles per image; their union covers it long before the last
_TRIES = 10  # draws of a rectangle, as in BEiT's code
_SMALLEST = 16 / 196  # of a rectangle: 16 patches of BEiT's 14 x 14


class Mask(NamedTuple):
    """A choice of hidden patches.

    Attributes:
        ids_keep: (B, n) positions of the visible patches.
        ids_hide: (B, N - n) positions of the hidden patches.
        ids_restore: (B, N) the place of each patch in [ids_keep, ids_hide].
        mask: (B, N) bool, True means hidden.
    """

    ids_keep: Tensor
    ids_hide: Tensor
    ids_restore: Tensor
    mask: Tensor


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """int(N * (1 - ratio)), the count of the published MAE code.

    Raises:
        UserError: no patch would be visible, or none hidden.
    """
    visible = int(num_patches * (1 - mask_ratio))
    if not 0 < visible < num_patches:
        what = "visible" if visible <= 0 else "hidden"
        raise UserError(
            f"model.mask_ratio={mask_ratio} leaves no {what} patch of {num_patches}: "
            f"choose one between {1 / num_patches:.3g} and {1 - 1 / num_patches:.3g}"
        )
    return visible


def check_mask(kind: MaskKind, grid_size: Size, mask_ratio: float) -> None:
    """Check that a patch grid can have this kind of mask.

    Raises:
        UserError: the ratio hides all patches or none, or a grid mask does not fit the patch grid.
    """
    num_visible(grid_size[0] * grid_size[1], mask_ratio)
    if kind == "grid":
        _grid_stride(grid_size, mask_ratio)


def draw_mask(keys: Tensor, grid_size: Size, mask_ratio: float, kind: MaskKind = "random") -> Mask:
    """Draw one mask per sample key: keys (B,) int64 -> `Mask` over N patches, the same count hidden in each.

    The three kinds are those of https://arxiv.org/abs/2111.06377, table 1(f) and figure 6:
    ``random`` hides a uniform choice; ``block`` hides the union of random rectangles (those of
    https://arxiv.org/abs/2106.08254, the last one cut to the exact count); ``grid`` leaves one patch of every
    s x s cell visible, at a place drawn once per image, for a ratio of 1 - 1/s^2 (75 %: one of four).

    Raises:
        UserError: see `check_mask`.
    """
    visible = num_visible(grid_size[0] * grid_size[1], mask_ratio)
    keys = fold_each(keys, "mask")
    if kind == "random":
        scores = uniform(keys, grid_size[0] * grid_size[1])
    elif kind == "block":
        scores = _block_scores(keys, grid_size, grid_size[0] * grid_size[1] - visible)
    else:
        stride = _grid_stride(grid_size, mask_ratio)
        scores, visible = _grid_scores(keys, grid_size, stride), grid_size[0] * grid_size[1] // stride**2
    return mask_from_scores(scores, visible)


def mask_from_scores(scores: Tensor, visible: int) -> Mask:
    """The patches of the `visible` smallest scores are visible, as in the published MAE code: (B, N) -> `Mask`.

    Equal scores stay in their order, so all devices give the same mask.
    """
    ids_shuffle = scores.argsort(dim=1, stable=True)  # (B, N)
    ids_restore = torch.empty_like(ids_shuffle)
    order = torch.arange(scores.shape[1], device=scores.device)
    ids_restore.scatter_(1, ids_shuffle, order.expand_as(ids_shuffle))  # the inverse, without a second sort
    return Mask(ids_shuffle[:, :visible], ids_shuffle[:, visible:], ids_restore, ids_restore >= visible)


def mask_from_tensor(mask: Tensor) -> Mask:
    """A user's own mask: bool (B, N) or (B, grid_h, grid_w), True means hidden -> `Mask`, patches in their order.

    Raises:
        UserError: it hides all patches or none, or not the same number in each image of the batch.
    """
    mask = mask.flatten(1).to(torch.bool)
    counts = mask.sum(dim=1)
    hidden = int(counts[0])
    if not bool((counts == hidden).all()):
        raise UserError("a mask must hide the same number of patches in each image of a batch: pass them one by one")
    if not 0 < hidden < mask.shape[1]:
        raise UserError(f"a mask must leave a visible and a hidden patch: this one hides {hidden} of {mask.shape[1]}")
    return mask_from_scores(mask.to(torch.float32), mask.shape[1] - hidden)


def _block_scores(keys: Tensor, grid_size: Size, hidden: int) -> Tensor:
    """Scores (B, N): the largest `hidden` are a union of rectangles, the last of them cut at one of its edges.

    Algorithm 1 of https://arxiv.org/abs/2106.08254 as its published code has it: the next rectangle is the first of ten
    draws that is smaller than the grid in both directions, hides something new, and not more than is left to hide. If
    none does, the draw that hides most is taken; that one may go beyond the count.
    """
    num_patches = grid_size[0] * grid_size[1]
    scores = uniform(fold_each(keys, "tie"), num_patches)  # (B, N), of what no rectangle hides
    number = torch.arange(num_patches, device=keys.device)
    by_column = number % grid_size[1] * grid_size[0] + number // grid_size[1]
    orders = torch.stack([number, by_column, num_patches - 1 - number, num_patches - 1 - by_column])
    for step in range(_NUM_BLOCKS, 0, -1):
        mask = scores >= 1
        left = hidden - mask.sum(1)  # (B,)
        if not bool((left > 0).any()):
            break
        draw = fold_each(keys, "block", step)
        inside, fits = _rectangles(draw, grid_size, left)  # (B, tries, N), (B, tries)
        new = (inside & ~mask[:, None]).sum(2)  # (B, tries)
        suits = fits & (new > 0) & (new <= left[:, None])
        chosen = torch.where(suits.any(1), suits.int().argmax(1), (new * fits).argmax(1))  # (B,)
        inside = inside[torch.arange(len(keys), device=keys.device), chosen]
        edge = (uniform(fold_each(draw, "edge"), 1) * 4).long()[:, 0]
        scores = torch.where(inside & ~mask, step + orders[edge] / num_patches, scores)
    return scores


def _rectangles(keys: Tensor, grid_size: Size, left: Tensor) -> tuple[Tensor, Tensor]:
    """Ten rectangles per key, 16 patches of 196 up to `left` (B,): (B, tries, N) bool, (B, tries) whether it fits."""
    grid_h, grid_w = grid_size
    area, aspect, top, start = uniform(keys, 4 * _TRIES).view(-1, 4, _TRIES).unbind(1)  # (B, tries) each
    smallest = grid_h * grid_w * _SMALLEST
    area = smallest + (left.clamp(min=0)[:, None] - smallest) * area
    aspect = 0.3 ** (1 - 2 * aspect)  # log-uniform in (0.3, 1 / 0.3)
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall < grid_h) & (wide < grid_w)
    tall, wide = tall.clamp(1, grid_h)[..., None], wide.clamp(1, grid_w)[..., None]  # (B, tries, 1)
    top = (top[..., None] * (grid_h - tall + 1)).floor()
    start = (start[..., None] * (grid_w - wide + 1)).floor()
    row, column = torch.arange(grid_h, device=keys.device), torch.arange(grid_w, device=keys.device)
    in_rows = (row >= top) & (row < top + tall)  # (B, tries, grid_h)
    in_columns = (column >= start) & (column < start + wide)  # (B, tries, grid_w)
    return (in_rows[..., None] & in_columns[..., None, :]).flatten(2), fits


def _grid_stride(grid_size: Size, mask_ratio: float) -> int:
    """The cell side s of a grid mask that hides 1 - 1/s^2 of the patches."""
    stride = round((1 / (1 - mask_ratio)) ** 0.5)
    if stride < 2 or abs(1 - 1 / stride**2 - mask_ratio) > 1e-3:
        raise UserError(
            f"model.mask_kind=grid keeps one patch of s x s: model.mask_ratio={mask_ratio} is none of "
            "0.75 (s=2), 0.889 (s=3), 0.9375 (s=4)"
        )
    if grid_size[0] % stride or grid_size[1] % stride:
        raise UserError(
            f"model.mask_kind=grid with model.mask_ratio={mask_ratio} needs a patch grid divisible by "
            f"{stride}, not {grid_size[0]}x{grid_size[1]}"
        )
    return stride


def _grid_scores(keys: Tensor, grid_size: Size, stride: int) -> Tensor:
    """Scores (B, N): negative for the visible patch of each cell."""
    place = (uniform(keys, 2) * stride).floor().long()  # (B, 2)
    row = torch.arange(grid_size[0], device=keys.device) % stride
    column = torch.arange(grid_size[1], device=keys.device) % stride
    visible = (row == place[:, :1])[:, :, None] & (column == place[:, 1:])[:, None, :]  # (B, grid_h, grid_w)
    return 1 - 2 * visible.flatten(1).to(torch.float32)


class Corruption(NamedTuple):
    """A choice of corrupted patch embeddings (https://arxiv.org/abs/2010.11929, appendix B.1.2).

    Attributes:
        ids: (B, k) positions of the corrupted patches, in a random order.
        mask: (B, N) bool, True where a patch is corrupted and its content must be predicted.
        masked: (B, N) bool, True where the embedding becomes the mask token (80 % of the corrupted).
        source: (B, N) the position each embedding is taken from: itself, or another patch's (10 % of the corrupted).
    """

    ids: Tensor
    mask: Tensor
    masked: Tensor
    source: Tensor


def draw_corruption(keys: Tensor, num_patches: int, mask_ratio: float) -> Corruption:
    """Draw what masked patch prediction corrupts: keys (B,) int64 -> `Corruption`, exact counts in every image.

    Of the corrupted patches 80 % become the mask token, 10 % another patch's embedding, 10 % stay
    (https://arxiv.org/abs/2010.11929, appendix B.1.2); the first two counts are rounded.

    Raises:
        UserError: the ratio corrupts all patches or none.
    """
    corrupted = num_patches - num_visible(num_patches, mask_ratio)
    num_masked, num_swapped = round(0.8 * corrupted), round(0.1 * corrupted)
    keys = fold_each(keys, "corrupt")
    ids = uniform(keys, num_patches).argsort(dim=1, stable=True)[:, :corrupted]  # (B, k)
    nothing = torch.zeros(keys.shape[0], num_patches, dtype=torch.bool, device=keys.device)
    ids_masked, ids_swapped = ids[:, :num_masked], ids[:, num_masked : num_masked + num_swapped]
    away = 1 + (uniform(fold_each(keys, "donor"), num_swapped) * (num_patches - 1)).long()
    source = torch.arange(num_patches, device=keys.device).repeat(keys.shape[0], 1)
    source = source.scatter(1, ids_swapped, (ids_swapped + away) % num_patches)  # never itself
    return Corruption(ids, nothing.scatter(1, ids, True), nothing.scatter(1, ids_masked, True), source)


def corrupt(tokens: Tensor, corruption: Corruption, mask_token: Tensor) -> Tensor:
    """Apply a `Corruption` to patch embeddings: (B, N, D), mask token (1, 1, D) -> (B, N, D)."""
    tokens = gather_tokens(tokens, corruption.source)
    return torch.where(corruption.masked[..., None], mask_token.to(tokens.dtype), tokens)
