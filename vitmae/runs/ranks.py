"""All ranks of a run end together: each watches the others, and ends the run when one of them is gone.

A rank that is missing leaves the others in a collective, some for half an hour. So a thread on each rank looks for:

    on the first rank    an error that another has written to the run's directory; a process that it started and that
                         has ended; a rank that torchrun or srun started, and that no longer lives
    on another rank      the lease of the first rank: its process no longer lives, or it has recorded its end

The first rank records the failure and prints it. If the first rank itself was killed, one of the others does.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

from vitmae.errors import UserError
from vitmae.interruption import ABORTED, INTERRUPTED, interruption
from vitmae.lease import BEAT_S, Watch, give_back, holding, take
from vitmae.runs.directory import RunDirectory, lease_of, read_summary
from vitmae.runs.exit import FAULT, record_failure, short
from vitmae.runs.launch import Launch

_POLL_S, _LEAVE_S = 0.2, 3.0
_SILENT_S = 3 * BEAT_S
"""After so many seconds without a lease, the first rank has ended and could not record it: its disk may be full."""
_CAUSE_S, _CAUSE_OF_FIRST_S = 3.0, 90.0
"""How long a rank that has lost its connection waits until the thread finds out which rank is gone, in seconds: longer
for the first, which may wait for an upload before it records that it has failed."""


@contextmanager
def taking_part(run: RunDirectory, launch: Launch) -> Iterator[None]:
    """While the block runs, the directory shows that this rank is alive; the first rank is its only writer.

    Raises:
        UserError: another process writes there.
    """
    with holding(lease_of(run.path, launch.rank), str(short(run.path))):
        yield


@contextmanager
def watching_others(run: RunDirectory, launch: Launch) -> Iterator[None]:
    """While the block runs, end this process as soon as another rank is gone; nothing to do for a process alone.

    A signal to any rank that torchrun or srun started reaches the first, which decides where all of them stop: outside
    the training steps ranks are not in step, so they cannot agree by a collective.

    The processes that this one starts are watched with `watching_started`.
    """
    if launch.rank > 0:
        if launch.separate:
            interruption.pass_on = (run.path / f"rank{launch.rank}.signal").touch
            if interruption.is_requested:  # before the directory was known
                interruption.pass_on()
        look = _until_first_has_ended(run, launch, Watch(run.lease))
    elif launch.separate:
        watches: dict[Path, Watch] = {}

        def look() -> None:
            if not interruption.is_requested and any(run.path.glob("rank*.signal")):
                os.kill(os.getpid(), signal.SIGTERM)
            _end_if(_reported(run) or _vanished(run, watches), run, lambda: None)
    else:
        yield
        return
    with _looking(look):
        yield


@contextmanager
def watching_started(
    run: RunDirectory, started: Callable[[], Sequence[Popen[bytes]]], end_others: Callable[[], Any]
) -> Iterator[None]:
    """While the block runs, end all processes as soon as one that this process started is gone.

    Args:
        run: the other ranks write their errors to its directory.
        started: the processes, those of rank 1, 2, … in their order.
        end_others: ends them.
    """

    def look() -> None:
        _end_if(_reported(run) or _ended(started()), run, end_others)

    with _looking(look), cause_first(Launch()):
        yield


@contextmanager
def cause_first(launch: Launch) -> Iterator[None]:
    """If the block loses its connection to another rank, wait until the thread that looks for its cause has found it.

    The thread then ends this process, so that the cause is told and not its effect.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_lost_connection(error):
            time.sleep(_CAUSE_S if launch.rank == 0 else _CAUSE_OF_FIRST_S)
        raise


@contextmanager
def _looking(look: Callable[[], None]) -> Iterator[None]:
    """Look every moment, in a thread, until the block has ended."""
    looking = threading.Lock()  # a block that has ended keeps it

    def loop() -> None:
        while looking.acquire(blocking=False):
            try:
                with suppress(OSError, UserError):  # a network file system may be away for a moment
                    look()
            finally:
                looking.release()
            time.sleep(_POLL_S)

    threading.Thread(target=loop, daemon=True, name="watching-ranks").start()
    try:
        yield
    finally:
        looking.acquire()


def _is_lost_connection(error: Exception) -> bool:
    """Whether torch lost its connection to another rank; torch has no class for all such errors."""
    return type(error).__name__.startswith("Dist") or "gloo/transport" in str(error) or "NCCL" in str(error)


def _reported(run: RunDirectory) -> dict[str, Any] | None:
    """The error that another rank has written."""
    file = next(iter(sorted(run.path.glob("rank*.error"))), None)
    error: dict[str, Any] | None = None if file is None else json.loads(file.read_text())
    return error


def _ended(processes: Sequence[Popen[bytes]]) -> dict[str, Any] | None:
    """The first of the processes that has ended with another code than 0."""
    for rank, process in enumerate(processes, 1):
        if (code := process.poll()) and code not in (INTERRUPTED, ABORTED):  # this rank was stopped too
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            return {"text": f"error: process {rank} of the run (pid {process.pid}) {how}", "code": FAULT}
    return None


def _vanished(run: RunDirectory, watches: dict[Path, Watch]) -> dict[str, Any] | None:
    """The first rank whose process lives no longer, although it has not ended its part."""
    for file in run.path.glob(f"{run.lease.name}.rank*"):
        watch = watches.setdefault(file, Watch(file))
        state = watch.look()
        if state == "free":
            del watches[file]
        if state == "dead":
            rank = file.name.rpartition("rank")[2]
            return {"text": f"error: process {rank} of the run was killed: {watch.holder}", "code": FAULT}
    return None


def _end_if(failure: dict[str, Any] | None, run: RunDirectory, end_others: Callable[[], Any]) -> None:
    if failure is None or (interruption.is_requested and not interruption.is_held):  # it fails because this one leaves
        return
    record_failure(run, **failure)
    print(failure["text"], file=sys.stderr, flush=True)
    end_others()
    give_back(run.lease)
    os._exit(failure["code"])  # the main thread may hang in a collective


def _until_first_has_ended(run: RunDirectory, launch: Launch, watch: Watch) -> Callable[[], None]:
    """What another rank looks for: that the first rank was killed, has failed, or was interrupted."""
    free_since: list[float] = []

    def end(code: int) -> None:
        give_back(lease_of(run.path, launch.rank))
        os._exit(code)

    def look() -> None:
        state = watch.look()
        if state == "dead":
            with suppress(OSError, UserError):
                _record_death_of_first(run, watch)
            end(FAULT)
        if state != "free":
            free_since.clear()
            return
        free_since.append(time.monotonic())
        free_s, how = free_since[-1] - free_since[0], read_summary(run.path).get("state")
        if how == "failed" or (how == "running" and free_s > _SILENT_S):
            end(FAULT)
        if how == "interrupted" and free_s > _LEAVE_S:
            end(INTERRUPTED)

    return look


def _record_death_of_first(run: RunDirectory, watch: Watch) -> None:
    """Record that the first rank was killed, unless another rank has, or the run has started again."""
    watch.take_away()
    with suppress(UserError):
        take(run.lease, str(run.path))
        text = f"error: the first process of the run was killed: {watch.holder}"
        if read_summary(run.path).get("state") == "running":
            RunDirectory(run.path).record("failed", error=text.removeprefix("error: "))
            print(text, file=sys.stderr, flush=True)
        give_back(run.lease)
