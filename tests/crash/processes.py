"""Start a command, send it a signal at a given moment, and see how all of its processes end."""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "VITMAE_CRASH_TEST"
"""In the environment of each process of a command: it finds them all, also those in a session of their own."""
PATIENCE_S = 60.0
"""How long a signal may take. Seconds are meant; a busy machine needs more."""
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        sent: the signal; None if the command ended before its moment came.
        target: who got the signal: all, first (the process that was started) or other (one that it started).
        moment_s: when the signal was sent, in seconds from the start.
        seconds: from the signal to the end; from the start if there was none.
        orphans: command lines of processes that were still there after the end.
        output: stdout and stderr.
    """

    code: int
    sent: signal.Signals | None
    target: str
    moment_s: float
    seconds: float
    orphans: list[str]
    output: str


def run(
    words: Sequence[str], log: Path, sent: signal.Signals | None = None, target: str = "all", moment_s: float = 0.0
) -> Ending:
    """Run a command to its end, and send it at most one signal.

    Args:
        words: the arguments of Python.
        log: receives what the command prints.
        sent: the signal; None: the command runs to its end.
        target: see `Ending`.
        moment_s: when to send it, in seconds from the start.

    Raises:
        TimeoutError: the command does not end.
    """
    mark = secrets.token_hex(8)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a signal to its group does not reach this process
        )
    try:
        since = time.monotonic()
        is_sent = sent is not None and not _ends_within(process, moment_s) and _send(sent, target, process.pid, mark)
        since = time.monotonic() if is_sent else since
        if not _ends_within(process, PATIENCE_S if is_sent else _LIMIT_S):
            raise TimeoutError(f"still running {time.monotonic() - since:.0f} s after {sent}: see {log}")
        seconds = time.monotonic() - since
        orphans = _orphans(mark, may_stay=is_sent and sent == signal.SIGKILL)
    finally:
        for other in _processes(mark):
            _kill(other, signal.SIGKILL)
        process.wait()
    return Ending(
        process.returncode,
        sent if is_sent else None,
        target,
        moment_s,
        seconds,
        orphans,
        log.read_text(errors="replace"),
    )


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _send(sent: signal.Signals, target: str, first: int, mark: str) -> bool:
    """Send the signal; False if there is no such process."""
    others = [process for process in _processes(mark) if process != first]
    if target == "first":
        chosen = [first]
    elif target == "other":
        chosen = [random.choice(others)] if others else []
    else:
        chosen = [first, *others]
    for process in chosen:
        _kill(process, sent)
    return bool(chosen)


def _orphans(mark: str, may_stay: bool) -> list[str]:
    """Command lines of the processes that are left; those of a killed command have some seconds to notice it."""
    until = time.monotonic() + (PATIENCE_S if may_stay else 2.0)
    while (left := _processes(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    return [_read(process, "cmdline").replace("\0", " ") for process in left]


def _processes(mark: str) -> list[int]:
    """The process ids whose environment has the mark; a process that has ended has none."""
    ids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in sorted(ids) if f"{MARK}={mark}" in _read(number, "environ").split("\0")]


def _read(process: int, what: str) -> str:
    try:
        return Path(f"/proc/{process}/{what}").read_text(errors="replace")
    except OSError:
        return ""


def _kill(process: int, sent: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, sent)
