"""Requests -> batches: in this process, or in workers that each make whole batches."""

import gc
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from vitmae.data.samplers import Request
from vitmae.errors import UserError
from vitmae.torch_internals import stop_workers


class Requests(Protocol):
    """An order of batches, see `samplers.py`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...


class Reader(Protocol):
    """Returns the batch of a request, see `readers.py`."""

    def __getitem__(self, request: Request) -> Any: ...


class Loader:
    """The batches of a reader in the order of some requests; each iteration is an epoch.

    An iteration reads its start when its first batch is requested, because a Trainer that resumes does not know it
    before.

    Args:
        reader: returns the batch of a request.
        requests: the order.
        num_workers: processes that make batches; 0: this process makes them.
        pin_memory: return batches in pinned memory, from which a GPU copies in the background.
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
                collate_fn=_unchanged,
                pin_memory=pin_memory,
                persistent_workers=True,
                worker_init_fn=_skip_inherited_objects,
            )
            # the garbage collector may close the queues of the workers before it tells them to stop, and then waits for
            # them; this stops them first
            weakref.finalize(self, stop_workers, self._workers)

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Any]:
        if self._workers is None:
            batches: Iterator[Any] = map(self.reader.__getitem__, self.requests)
        else:
            with _no_garbage_collection():  # a forked worker starts without a collection
                batches = iter(self._workers)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError, FileNotFoundError):
                if self._workers is not None:  # one was killed while it sent a batch: torch's error says so at once
                    time.sleep(1)
                raise
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Empty: the place in an epoch follows from the Trainer's progress, which a checkpoint holds.

        Lightning looks for this method to find out whether a run can resume within an epoch.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do, see `state_dict`."""


class _Guarded(Dataset[Any]):
    """A reader that returns a user's mistake instead of raising it: torch would add the traceback of the worker."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, request: Request) -> Any:
        try:
            return self.reader[request]
        except UserError as error:
            return error


def _unchanged(batch: Any) -> Any:
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


def _skip_inherited_objects(worker: int) -> None:
    """Exclude inherited objects from a worker's garbage collection, which would copy their pages of memory."""
    gc.freeze()
    gc.enable()
