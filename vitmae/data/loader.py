"""Requests in, batches out: in this process, or by workers that each make whole batches."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from vitmae.data.samplers import Request
from vitmae.errors import UserError


class Requests(Protocol):
    """An order of batches, see `samplers.py`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...


class Reader(Protocol):
    """Makes a batch of a request, see `readers.py`."""

    def __getitem__(self, request: Request) -> Any: ...


class Loader:
    """The batches of a reader in the order of some requests; iterated again it starts the next epoch.

    An iteration asks where to start when its first batch is asked for, not before: only then does a Trainer
    that resumes know.

    Args:
        reader: makes a batch of a request.
        requests: the order.
        num_workers: processes that make batches; 0: this one does.
        pin_memory: hand batches over in pinned memory, from which a GPU copies in the background.
    """

    def __init__(self, reader: Reader, requests: Requests, num_workers: int, pin_memory: bool) -> None:
        self.reader, self.requests = _Guarded(reader), requests
        self._workers = None
        if num_workers:
            self._workers = DataLoader(
                self.reader,
                batch_size=None,
                sampler=requests,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                pin_memory=pin_memory,
                persistent_workers=True,
                worker_init_fn=_leave_alone,
            )
            # Workers that are left to the garbage collector's order of things are not told to stop, and are waited
            # for: their queues may be closed before. This keeps both out of its hands.
            weakref.finalize(self, _stop, self._workers)

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Any]:
        if self._workers is None:
            batches: Iterator[Any] = map(self.reader.__getitem__, self.requests)
        else:
            with _no_garbage_collection():  # workers start without it
                batches = iter(self._workers)
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place in an epoch follows from the Trainer's progress, which a checkpoint holds.

        That it exists tells Lightning that a run can go on in mid-epoch.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do, see `state_dict`."""


class _Guarded(Dataset[Any]):
    """A reader that hands user errors over as batches: raised in a worker they would lose their one line."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, request: Request) -> Any:
        try:
            return self.reader[request]
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _leave_alone(worker: int) -> None:
    """What a worker has inherited is not its to tidy up, nor worth copying to find that out."""
    gc.freeze()
    gc.enable()


def _stop(workers: DataLoader[Any]) -> None:
    workers._iterator = None
