"""Weighted nearest neighbours on cosine similarity (InstDisc, https://arxiv.org/abs/1805.01978, §3.4).

    unit vectors -> similarity, tile by tile -> the k largest -> votes exp(similarity / T), for every k

The search is exact: each query is compared with the whole bank, in tiles that limit the memory.

A low accuracy of MAE features is expected: pixel prediction does not give the images of a class one direction
(ImageNet, B/16, 100 epochs: 11 %). Linear and attentive probes show what these features contain.

Shapes: Q queries, M bank vectors, D width, K classes, q and m the rows and columns of a tile.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, accuracy_of, probe_result
from vitmae.probes.features import Features

KS = (1, 5, 20, 100, 200)
TEMPERATURE = 0.07
MEMORY = 1 << 30  # bytes

_MOST_COLUMNS = 1 << 16  # of a tile, unless the whole bank fits: with more columns, fewer rows fit the memory


def knn(
    train: Features,
    test: Features,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> dict[str, dict[int, ProbeResult]]:
    """Classify ``test`` by its neighbours in ``train``: per pooling, per k, an accuracy with its interval.

    Every k is reported. To choose one, pass the validation split as ``test`` first.

    Args:
        train: the bank, labelled.
        test: the queries, labelled.
        ks: how many neighbours vote. A k above the size of ``train`` is left out.
        temperature: T of the weights exp(similarity / T).
        device: where to compute.

    Raises:
        UserError: labels are missing, or no k is in 1 … M.
    """
    num_classes = max(train.num_classes, test.num_classes)
    results = {}
    for pooling, bank in train.pooled.items():
        queries, labels = test.pooled[pooling], train.labels
        predictions = predict(
            queries, bank, labels, num_classes=num_classes, ks=ks, temperature=temperature, device=device
        )
        results[pooling] = {
            k: probe_result(
                "knn",
                pooling,
                per_seed=[accuracy_of(predicted, test.labels)],
                num_images=len(test),
                setting={"k": k, "temperature": temperature},
            )
            for k, predicted in predictions.items()
        }
    return results


def predict(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> dict[int, Tensor]:
    """The class with the largest sum of weights among the k nearest: (Q, D), (M, D), (M,) -> per k, (Q,).

    The neighbours are searched once. Of classes with equal sums, the lower one is chosen.

    Args: as `knn`; labels (M,) int64 in [0, ``num_classes``); memory as `neighbours`.

    Raises:
        UserError: no k is in 1 … M, or ``memory`` is too small.
    """
    ks = usable_ks(ks, len(bank))
    labels = labels.to(device)
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    reserved = 16 * num_classes + 32 * ks[-1]  # votes and weights
    for similarity, ids in neighbours(queries, bank, ks[-1], reserved=reserved, memory=memory, device=device):
        weights = (similarity.double() / temperature).exp()  # (q, k)
        votes = weights.new_zeros(len(weights), num_classes)  # (q, K)
        counted = 0
        for k in ks:
            votes.scatter_add_(1, labels[ids[:, counted:k]], weights[:, counted:k])
            parts[k].append(votes.argmax(1).cpu())
            counted = k
    return {k: torch.cat(predicted) for k, predicted in parts.items()}


def usable_ks(ks: Sequence[int], num_images: int) -> list[int]:
    """The numbers of neighbours that a bank of images has, ascending.

    Raises:
        UserError: none of them is in 1 … ``num_images``.
    """
    usable = sorted(k for k in set(ks) if k <= num_images)
    if not usable or usable[0] < 1:
        raise UserError(f"knn: no k fits a bank of {num_images} images: k must be ≥ 1 and ≤ {num_images}")
    return usable


@torch.no_grad()
def neighbours(
    queries: Tensor,
    bank: Tensor,
    k: int,
    *,
    reserved: int = 0,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k nearest by cosine, best first, for q queries at a time: similarities and bank ids (int64), (q, k) each.

    They are computed in float32 or wider, whatever precision a training run has set. Equal similarities come in any
    order. A zero vector has similarity 0 with all vectors.

    Args:
        queries: (Q, D), of any floating type, memory-mapped or not.
        bank: (M, D).
        k: number of neighbours, in 1 … M.
        reserved: bytes per query that the caller needs for each block.
        memory: most bytes of the working tensors, without the arguments.
        device: where to compute.

    Raises:
        UserError: ``memory`` is too small.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    rows, columns = tile_sizes(
        len(queries), len(bank), dim=bank.shape[1], k=k, reserved=reserved, memory=memory, itemsize=dtype.itemsize
    )
    whole = _unit(bank, dtype, device) if columns == len(bank) else None
    for part in queries.split(rows):
        block = _unit(part, dtype, device)  # (q, D)
        near, ids = [], []
        for start in range(0, len(bank), columns):
            tile = _unit(bank[start : start + columns], dtype, device) if whole is None else whole  # (m, D)
            found = _products(block, tile).topk(min(k, len(tile)), dim=1)  # (q, k)
            near.append(found.values)
            ids.append(found.indices + start)
        similarity, chosen = torch.cat(near, 1).topk(k, dim=1)  # (q, k)
        yield similarity, torch.cat(ids, 1).gather(1, chosen)


def tile_sizes(
    num_queries: int, num_bank: int, *, dim: int, k: int, reserved: int = 0, memory: int = MEMORY, itemsize: int = 4
) -> tuple[int, int]:
    """Rows q and columns m of a tile so that the working tensors stay below ``memory`` bytes; see `neighbours`.

    A tile has the whole bank if half of the memory holds its unit vectors. Then the bank is normalised once, and the k
    largest of one wide tile are found faster than those of many narrow ones (measured: a column of a tile of
    50,000 takes a third of the time of one of 8,192).

    Raises:
        UserError: a tile of one row does not fit.
    """
    held = memory // (2 * dim * itemsize)
    columns = num_bank if num_bank <= held else max(1, min(held, _MOST_COLUMNS))
    tiles = -(-num_bank // columns)
    candidates = (tiles + 1) * k * 2 * (itemsize + 8)  # values and int64 ids of each tile, one by one and concatenated
    row = (dim + columns) * itemsize + candidates + reserved
    rows = min((memory - columns * dim * itemsize) // row, num_queries)
    if rows < 1:
        raise UserError(f"{memory / 2**20:.1f} MiB are too few for neighbours of width {dim}: allow more memory")
    return rows, columns


def _unit(vectors: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Scale to length 1, in one copy: (m, D) -> (m, D). Zero vectors stay zero."""
    vectors = vectors.to(device, dtype, copy=True)
    return vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(1e-12))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """The product a @ b.T in full float32, also if a training run has set TF32, bfloat16 or autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.T  # (q, m)
    finally:
        torch.set_float32_matmul_precision(before)
