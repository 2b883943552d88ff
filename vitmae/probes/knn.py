"""Weighted nearest neighbours on cosine similarity (InstDisc, https://arxiv.org/abs/1805.01978, §3.4).

    unit vectors -> similarity, tile by tile -> the k largest -> votes exp(similarity / T), for every k

Exact: each query meets the whole bank. Tiles bound the memory, and change nothing else.

MAE features do badly here, which is no fault: nothing in pixel prediction makes the encoder put the images of
a class in one direction. ImageNet, B/16, 100 epochs: 11 %. Linear and attentive probes show what is in them.

Shapes: Q queries, M bank vectors, D width, K classes, q and m the rows and columns of a tile.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vitmae.errors import UserError
from vitmae.probes.confidence import ProbeResult, accuracy_of, probe_result
from vitmae.probes.features import Features

KS = (1, 5, 20, 100, 200)
TEMPERATURE = 0.07
MEMORY = 1 << 30  # bytes

_MIN_QUERIES = 16  # rows of a tile below which a matrix product is no longer one


def knn(
    train: Features,
    test: Features,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> dict[str, dict[int, ProbeResult]]:
    """Classify ``test`` by its neighbours in ``train``: per pooling, per k, an accuracy with its interval.

    Nothing is chosen here: every k is reported. To choose one, pass the validation split as ``test`` first.
    A k above the size of ``train`` is left out.

    Args:
        train: the bank, labelled.
        test: the queries, labelled.
        ks: how many neighbours vote.
        temperature: T of the weights exp(similarity / T).
        memory: bytes that the working tensors may take; see `tile_sizes`.
        device: where to compute.

    Raises:
        UserError: if labels are missing, every k is larger than the bank, or ``memory`` is too small.
    """
    num_classes = max(train.num_classes, test.num_classes)
    results = {}
    for pooling, bank in train.pooled.items():
        predictions = predict(
            test.pooled[pooling],
            bank,
            train.labels,
            num_classes=num_classes,
            ks=ks,
            temperature=temperature,
            memory=memory,
            device=device,
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

    The neighbours are found once. Equal sums go to the lower class. A k above M is left out.

    Args: as `knn`; labels (M,) int64 in [0, ``num_classes``).

    Raises:
        UserError: if ``ks`` has no k in 1 … M, or ``memory`` is too small.
    """
    ks = sorted(k for k in set(ks) if k <= len(bank))
    if not ks or ks[0] < 1:
        raise UserError(f"no k fits a bank of {len(bank)} images: choose k from 1 to {len(bank)}")
    labels = labels.to(device)
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for similarity, indices in _neighbours(
        queries, bank, k=ks[-1], num_classes=num_classes, memory=memory, device=device
    ):
        weights = (similarity.double() / temperature).exp()  # (q, k)
        votes = weights.new_zeros(len(weights), num_classes)  # (q, K)
        counted = 0
        for k in ks:
            votes.scatter_add_(1, labels[indices[:, counted:k]], weights[:, counted:k])
            parts[k].append(votes.argmax(1).cpu())
            counted = k
    return {k: torch.cat(predicted) for k, predicted in parts.items()}


def nearest(
    queries: Tensor,
    bank: Tensor,
    k: int,
    *,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The k nearest by cosine, best first: (Q, D), (M, D) -> similarities and bank indices (int64), (Q, k).

    Computed in float32 at least, whatever precision a training run has switched on. Equal similarities come
    in the order of the bank, also where the k-th place has to choose among them. A zero vector has similarity
    0 with everything.

    Args: as `knn`; features may be of any floating type, and memory-mapped.

    Raises:
        UserError: if k is not in 1 … M, or ``memory`` is too small.
    """
    if not 1 <= k <= len(bank):
        raise UserError(f"k = {k} does not fit a bank of {len(bank)} images: choose k from 1 to {len(bank)}")
    blocks = _neighbours(queries, bank, k=k, num_classes=0, memory=memory, device=device)
    near, ids = zip(*((near.cpu(), ids.cpu()) for near, ids in blocks), strict=True)
    return torch.cat(near), torch.cat(ids)


def tile_sizes(
    num_queries: int,
    num_bank: int,
    *,
    dim: int,
    k: int,
    num_classes: int,
    memory: int = MEMORY,
    itemsize: int = 4,
) -> tuple[int, int]:
    """Rows q and columns m of a tile so that the working tensors stay below ``memory`` bytes.

    Counted are the unit vectors of the tile, (q, D) and (m, D), its similarities (q, m) and a byte per pair
    for ties, the candidates of two tiles with their indices, and the votes. Not counted are the features
    given, which may be memory-mapped, and what comes back.

    The bank is taken whole where half of the memory holds its unit vectors: it is normalised once, and a wide
    tile selects its k largest faster than many narrow ones (measured: 50,000 columns take a third of the time
    per column that 8,192 take).

    Raises:
        UserError: if not even a small tile fits.
    """
    most = memory // (2 * dim * itemsize)
    columns = num_bank if num_bank <= most else min(most, 1 << 16)
    candidates = (k + 1) * (6 * itemsize + 64)  # values and int64 indices while two tiles are merged
    while columns > 0:
        row = dim * itemsize + columns * (itemsize + 1) + candidates + num_classes * 16
        rows = (memory - columns * dim * itemsize) // row
        if rows >= min(num_queries, _MIN_QUERIES):
            return min(rows, num_queries), columns
        columns //= 2
    raise UserError(f"{memory / 2**20:.1f} MiB are too few for neighbours of width {dim}: allow more memory")


@torch.no_grad()
def _neighbours(
    queries: Tensor, bank: Tensor, *, k: int, num_classes: int, memory: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """`nearest`, one block of queries after the other."""
    dtype = torch.promote_types(torch.promote_types(queries.dtype, bank.dtype), torch.float32)
    rows, columns = tile_sizes(
        len(queries),
        len(bank),
        dim=bank.shape[1],
        k=k,
        num_classes=num_classes,
        memory=memory,
        itemsize=dtype.itemsize,
    )
    whole = _unit(bank, dtype, device) if columns >= len(bank) else None
    for first in range(0, len(queries), rows):
        block = _unit(queries[first : first + rows], dtype, device)  # (q, D)
        best, indices = block.new_empty(0), block.new_empty(0, dtype=torch.int64)
        for start in range(0, len(bank), columns):
            tile = _unit(bank[start : start + columns], dtype, device) if whole is None else whole
            with _full_precision(block.device):
                similarity = block @ tile.T  # (q, m)
            near, ids = _largest(similarity, k)
            del similarity
            if start:
                # what came before has the lower indices and stands first: ties stay in the order of the bank
                near, chosen = _largest(torch.cat([best, near], 1), k)  # (q, k)
                ids = torch.cat([indices, ids + start], 1).gather(1, chosen)
            best, indices = near, ids
        yield best, indices


def _unit(vectors: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Scale to length 1, in one copy: (m, D) -> (m, D). Zero vectors stay zero."""
    vectors = vectors.to(device, dtype, copy=True)
    return vectors.div_(torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(1e-12))


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, best first, of equals the first: (q, m) -> values and columns, (q, k).

    ``topk`` may take any of equal values. So one more than k is asked for, and a row in which two of them are
    equal, and only such a row, is decided again by counting.
    """
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    k = values.shape[1]
    # counting takes a few bytes per pair: a share of the rows at a time keeps it within the byte set aside
    for rows in tied.split(max(len(similarity) // 16, 1)):
        row = similarity[rows]  # (r, m)
        last = values[rows, -1:]
        above, equal = row > last, row == last
        places = k - above.sum(1, keepdim=True)
        kept = above | equal & (equal.cumsum(1, dtype=torch.int32) <= places)
        ids = kept.nonzero()[:, 1].view(-1, k)  # (r, k), ascending
        order = row.gather(1, ids).argsort(dim=1, descending=True, stable=True)
        columns[rows] = ids.gather(1, order)
        values[rows] = row.gather(1, columns[rows])
    return values, columns


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in full float32, although a training run may have switched on TF32, bfloat16 or autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
