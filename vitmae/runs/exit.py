"""How a run ends: its state on disk, its exit code, and one message, whichever rank failed.

If one of several processes fails, the others wait for it in a collective, and Lightning kills the first rank without a
message. So a rank other than the first does not end at once: it writes its error into the run's directory and waits.
The first rank watches for that file, prints the error and ends all processes.
"""

import json
import logging
import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitmae.atomic import atomic_write
from vitmae.errors import UserError
from vitmae.runs.directory import RunDirectory
from vitmae.runs.interruption import Interrupted
from vitmae.runs.launch import Launch

FAULT, USER_ERROR, INTERRUPTED, ABORTED = 1, 2, 75, 130
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h (the run can be resumed), 130 the shell's for Ctrl-C."""

_POLL_S, _WAIT_S = 0.2, 30.0
_log = logging.getLogger(__name__)


def report(error: BaseException) -> int:
    """Print an error to stderr, a user's mistake in one line, a fault with its traceback; return the exit code."""
    text, code = _message(error)
    print(text, file=sys.stderr, flush=True)
    return code


def _message(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UserError):
        return f"error: {' '.join(str(error).split())}", USER_ERROR
    return "".join(traceback.format_exception(error)).rstrip(), FAULT


@contextmanager
def ending(run: RunDirectory, launch: Launch) -> Iterator[None]:
    """Record in the run's summary how the block ends; only the first rank prints.

    Raises:
        SystemExit: after an interruption, with code 75; with 0 in a process that the first rank started, because
            Lightning kills the first rank if a child ends with another code.
    """
    try:
        yield
    except Interrupted as stop:
        run.record("interrupted", step=stop.step)
        if launch.rank == 0:
            command = shlex.join(["python", "-m", "vitmae.train", f"ckpt={short(run.path)}"])
            _log.info("stopped after step %d; to resume: %s", stop.step, command)
        raise SystemExit(0 if launch.is_child else INTERRUPTED) from None
    except KeyboardInterrupt:
        run.record("interrupted")
        raise
    except Exception as error:
        text, code = _message(error)
        if launch.rank > 0:
            _hand_to_first_rank(run, launch.rank, text, code)
        record_failure(run, text, code)
        raise


def record_failure(run: RunDirectory, text: str, code: int) -> None:
    """Save why a run failed: one line in its summary, and the traceback of a fault in a file."""
    run.record("failed", error=text.splitlines()[-1].removeprefix("error: "))
    if code == FAULT:
        run.save_traceback(text)


def _hand_to_first_rank(run: RunDirectory, rank: int, text: str, code: int) -> None:
    with atomic_write(run.path / f"rank{rank}.error") as file:
        file.write(json.dumps({"text": text, "code": code}).encode())
    time.sleep(_WAIT_S)  # the first rank ends this process as soon as it has read the file
    os._exit(code)


@contextmanager
def watching_ranks(run: RunDirectory, end_others: Callable[[], Any]) -> Iterator[None]:
    """On the first of several ranks: while the block runs, end the run as soon as another rank reports an error.

    Args:
        run: the other ranks write their errors to its directory.
        end_others: ends the processes that this one started.
    """
    has_ended = threading.Lock()  # locked by the first that ends the run: the block, or the thread

    def watch() -> None:
        while not has_ended.locked():
            failure = next(iter(sorted(run.path.glob("rank*.error"))), None)
            if failure is not None and has_ended.acquire(blocking=False):
                error = json.loads(failure.read_text())
                record_failure(run, error["text"], error["code"])
                print(error["text"], file=sys.stderr, flush=True)
                end_others()
                os._exit(error["code"])  # the main thread may hang in a collective
            time.sleep(_POLL_S)

    threading.Thread(target=watch, daemon=True, name="watching-ranks").start()
    try:
        yield
    finally:
        has_ended.acquire()


def short(path: Path) -> Path:
    """A path as a user types it: relative if it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
