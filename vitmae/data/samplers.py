"""Which images are in which batch: a function of (seed, epoch), independent of workers and ranks.

    permutation of (seed, epoch) -> global batches of W * n images -> rank r takes every W-th of each

So in each step two ranks have the same images as one process with twice the batch. A request is for a whole batch: a
set in memory is read with one gather, and a worker decodes a whole batch.

A resumed run needs no saved state: its place follows from the number of batches trained on.

Letters: W ranks, r this rank, n distinct images per rank and batch.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitmae.errors import UserError
from vitmae.randomness import permutation


class Request(NamedTuple):
    """One requested batch, of plain types that can be sent to a worker.

    Attributes:
        epoch: the epoch, from 0; None in evaluation, where nothing is random.
        indices: (n,) int64, which images.
        repeats: how many times each image is in the batch, each time with another crop; the batch has n * repeats
            rows: all images once, then all of them again.
    """

    epoch: int | None
    indices: NDArray[np.int64]
    repeats: int = 1


class ShuffledRequests:
    """Training batches of one rank.

    Args:
        count: images in the set.
        batch_size: rows per batch of this rank, a multiple of ``repeats``.
        seed: of the permutations.
        repeats: repeated augmentation (https://arxiv.org/abs/1901.09335); an epoch has the same number of rows, so it
            has ``count / repeats`` images.
        drop_last: leave out the images that do not fill a batch on every rank. If False they make a last,
            smaller batch, of the same size on each rank (fewer than W images are still left out).
        rank: this process.
        world: how many processes.
        position: returns (epoch, its distinct images trained on) when an iteration starts; None: each iteration is an
            epoch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        *,
        repeats: int = 1,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.count, self.seed, self.repeats, self.rank, self.world = count, seed, repeats, rank, world
        self.block = batch_size // repeats * world  # distinct images of a global batch
        self.distinct, self.drop_last = count // repeats, drop_last  # images of an epoch
        self.position = position or self._next_epoch
        self._epochs_started = 0

    def _next_epoch(self) -> tuple[int, int]:
        self._epochs_started += 1
        return self._epochs_started - 1, 0

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever an iteration starts."""
        return len(self.sizes_after(0))

    def sizes_after(self, done: int) -> list[int]:
        """The sizes of the global batches that follow the first ``done`` images of an epoch.

        A run that resumes with a larger batch may have less than one left: that is a batch too.
        """
        whole, left = divmod(self.distinct - done, self.block)
        rest = left // self.world * self.world
        return [self.block] * whole + [rest] * (rest > 0 and not (self.drop_last and whole))

    def __iter__(self) -> Iterator[Request]:
        epoch, done = self.position()
        order = permutation(self.count, self.seed, "order", epoch).numpy()
        for size in self.sizes_after(done):
            yield Request(epoch, order[done + self.rank : done + size : self.world], self.repeats)
            done += size


class OrderedRequests:
    """Evaluation batches of one rank: over all ranks every image once, and the same number of batches on each rank.

    Args:
        count: images in the set.
        batch_size: images per batch of this rank.
        rank: this process.
        world: how many processes.

    Raises:
        UserError: there are too few images for the same number of batches on each rank.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        most = -(-count // world)  # images of the rank that has most
        batches = -(-most // batch_size)
        if count // world < batches:
            raise UserError(
                f"{count} images cannot be shared by {world} processes in batches of "
                f"{batch_size}: raise data.batch_size or use fewer processes"
            )
        mine = np.arange(rank, count, world, dtype=np.int64)
        self.batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        if len(self.batches) < batches:
            # the other ranks would wait for ever for a rank with fewer batches, so the last batch is divided in two
            last = self.batches.pop()
            self.batches += [last[:-1], last[-1:]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Request]:
        return (Request(None, indices) for indices in self.batches)
