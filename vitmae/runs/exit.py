"""How a run ends: its state on disk, its exit code, and one message, whichever rank failed.

    0    it is finished
    1    a fault of this project
    2    a mistake in the settings or the data
    75   interrupted by a signal or Ctrl-C; what was done is kept, and one line says how to resume it
    130  ended by a second Ctrl-C; or by Ctrl-C in a command that keeps nothing, or before there is a run

If one of several processes fails, the others wait for it in a collective. So a rank other than the first does not end
at once: it writes its error into the run's directory and waits. The first rank watches for that file
(`vitmae.runs.ranks`), prints the error and ends all processes.
"""

import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitmae.atomic import atomic_write
from vitmae.errors import LostRank, UserError
from vitmae.files import as_line
from vitmae.interruption import INTERRUPTED, Interrupted, interruption
from vitmae.machine_faults import explain_machine_fault
from vitmae.runs.directory import RunDirectory
from vitmae.runs.launch import Launch

FAULT, USER_ERROR = 1, 2
"""Exit codes, besides those of `vitmae.interruption`."""

_WAIT_S = 30.0
_log = logging.getLogger(__name__)


def report(error: BaseException) -> int:
    """Print an error to stderr and return the exit code; only a fault of this project shows its traceback."""
    text, code = _message(error)
    print(text, file=sys.stderr, flush=True)
    return code


def tell_interruption(stop: Interrupted, keeps: str) -> int:
    """Say on stderr what an interrupted command keeps, by default finished jobs or nothing; return its exit code."""
    kept = keeps or ("finished jobs are kept" if interruption.is_resumable else "nothing is kept")
    print(f"interrupted: {kept}; to go on, run the same command again", file=sys.stderr)
    return int(stop.code or INTERRUPTED)


def _message(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UserError):
        return f"error: {as_line(' '.join(str(error).split()))}", USER_ERROR
    if isinstance(error, LostRank):
        return f"error: {error}", FAULT
    if (fault := explain_machine_fault(error)) is not None:
        return f"error: {' '.join(fault.split())}", FAULT
    return _traceback(error), FAULT


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


@contextmanager
def ending(run: RunDirectory, launch: Launch) -> Iterator[None]:
    """Record in the run's summary how the block ends; only the first rank prints.

    Raises:
        SystemExit: after an interruption, with code 75; with 0 in a process that the first rank started. 130 after a
            second Ctrl-C.
    """
    interruption.is_resumable = True
    try:
        with interruption.last_words(lambda: _record_interruption(run, launch, None)):
            yield
    except Interrupted as stop:
        _record_interruption(run, launch, stop.step)
        raise SystemExit(0 if launch.is_child else stop.code) from None
    except Exception as error:
        text, code = _message(error)
        trace = _traceback(error)
        if launch.rank == 0 and code == FAULT and text.startswith("error: ") and run.last.exists():
            _log.info("last.ckpt is whole; to resume when the fault is mended: %s", _resuming(run))
        if launch.rank > 0:
            _hand_to_first_rank(run, launch.rank, text, code, trace)
        record_failure(run, text, code, trace)
        raise


def _record_interruption(run: RunDirectory, launch: Launch, step: int | None) -> None:
    """Record that a run was interrupted, and say how it goes on."""
    if launch.rank > 0:
        return
    run.record("interrupted", **({} if step is None else {"step": step}))
    if not run.last.exists():
        _log.info("stopped before the first checkpoint; to start again: %s", _resuming(run))
    elif step is None:
        _log.info("stopped; to resume: %s", _resuming(run))
    else:
        _log.info("stopped after step %d; to resume: %s", step, _resuming(run))


def record_failure(run: RunDirectory, text: str, code: int, trace: str | None = None) -> None:
    """Save why a run failed, unless its disk is full or lost: one line in its summary, a fault's traceback in a file.

    Args:
        run: the run.
        text: what is printed.
        code: the exit code.
        trace: the traceback; None if the fault is not in this process.
    """
    with suppress(OSError):
        run.record("failed", error=text.splitlines()[-1].removeprefix("error: "))
    if code == FAULT and trace is not None:
        with suppress(OSError):
            run.save_traceback(trace)


def _hand_to_first_rank(run: RunDirectory, rank: int, text: str, code: int, trace: str) -> None:
    with suppress(OSError), atomic_write(run.path / f"rank{rank}.error") as file:
        file.write(json.dumps({"text": text, "code": code, "trace": trace}).encode())
    time.sleep(_WAIT_S)  # the first rank ends this process as soon as it has read the file
    os._exit(code)


def _resuming(run: RunDirectory) -> str:
    return shlex.join(["python", "-m", "vitmae.train", f"ckpt={short(run.path)}"])


def short(path: Path) -> Path:
    """A path as a user types it: relative if it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
