"""One writer for each directory: a file in it, the lease, names the process that writes there.

Network file systems often have no locks, so a lease needs none: its file is created exclusively, and its writer touches
it every few seconds. A killed process leaves its lease behind. On the same machine that lease is free at once, because
the process no longer exists. Another machine cannot know this: there the lease is free when nobody has touched it for
a minute. That minute is measured by watching, so the clocks of the machines may differ.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from vitmae.errors import UserError

LEASE = ".lease"
"""The name of the file."""

BEAT_S, DEAD_AFTER_S = 10.0, 60.0
"""How often a lease is touched, and how long it is untouched when its writer is dead, in seconds."""

_POLL_S = 0.2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease.

    Attributes:
        host: its name, for messages.
        machine: where its process id is valid: the boot of a machine, and the container on it.
        pid: its process id.
        started: when it started, in the kernel's ticks, because process ids are used again; "" if the system hides it.
        since: the time at which it took the lease.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        """This process, from now on."""
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), _machine(), os.getpid(), start_of(os.getpid()) or "", now)

    def is_same_process(self, other: "Holder") -> bool:
        """Whether both are one process."""
        return (self.machine, self.pid, self.started) == (other.machine, other.pid, other.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def start_of(pid: int) -> str | None:
    """When a process of this machine started, in kernel ticks: None if it has ended, "" if the system hides it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, or the system hides it
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # it belongs to another user
            pass
        return ""
    return None if fields[0] in "ZX" else fields[19]  # Z: killed, but its parent has not read its exit code yet


def _machine() -> str:
    """What two processes share if each can look for the other's process id."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


class Watch:
    """Whether the process that holds a lease is alive, as far as this process can tell.

    Args:
        file: the lease; its present holder is watched.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._since = file, time.monotonic()
        self._text, self._touched = _read(file)
        self.holder = _parse(self._text)

    def look(self) -> Literal["free", "held", "quiet", "dead"]:
        """The state of the lease.

        Returns:
            free: it was given back, or another process has it; held: its process is alive; dead: its process is not;
            quiet: its process is on another machine, and has not touched it since the last look.
        """
        text, touched = _read(self._file)
        if text is None or text != self._text:
            return "free"
        if self.holder is not None and self.holder.machine == _machine():
            return "held" if start_of(self.holder.pid) in ("", self.holder.started) else "dead"
        if touched != self._touched:
            self._touched, self._since = touched, time.monotonic()
            return "held"
        return "dead" if time.monotonic() - self._since >= DEAD_AFTER_S else "quiet"

    def take_away(self) -> None:
        """Remove the lease of a dead holder; of several processes that do this at once, one succeeds."""
        aside = self._file.with_name(f"{self._file.name}.{socket.gethostname()}-{os.getpid()}")
        try:
            os.rename(self._file, aside)
        except FileNotFoundError:
            return
        if aside.read_text() != self._text:  # another process has taken it away before, and has its own lease here
            try:
                os.link(aside, self._file)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(aside, self._file)
        aside.unlink(missing_ok=True)


def take(file: Path, what: str) -> None:
    """Create the lease of this process; do nothing if this process holds it.

    Args:
        file: the lease.
        what: the directory, as the user wrote it, for messages.

    Raises:
        UserError: another process holds it.
    """
    me = Holder.this_process()
    while not _create(file, me):
        watch = Watch(file)
        if watch.holder is not None and watch.holder.is_same_process(me):
            return
        who = watch.holder or "an unknown process"
        if (state := watch.look()) == "quiet":
            _log.warning("%s: %s wrote here and has not ended; waiting up to %.0f s", what, who, DEAD_AFTER_S)
        while state == "quiet":
            time.sleep(_POLL_S)
            state = watch.look()
        if state == "held":
            raise UserError(f"{what} is in use by {who}: wait until it ends or stop it, or choose another directory")
        if state == "dead":
            watch.take_away()


@contextmanager
def holding(file: Path, what: str) -> Iterator[None]:
    """Hold a lease while the block runs.

    If another machine takes the lease, because this process was stopped or lost its file system for more than a minute,
    this process ends at once with code 1: what it would write next belongs to the other process.

    Args:
        file: the lease.
        what: the directory, as the user wrote it, for messages.

    Raises:
        UserError: another process holds it.
    """
    take(file, what)
    text, ended = file.read_text(), threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            try:
                if file.read_text() != text:
                    print(f"error: {what} was taken by {_parse(_read(file)[0])}: ends", file=sys.stderr, flush=True)
                    os._exit(1)
                os.utime(file)
            except FileNotFoundError:  # somebody has removed it
                if not ended.is_set():
                    with suppress(OSError), open(file, "x") as handle:
                        handle.write(text)
            except OSError:  # the file system is away: try again
                continue

    beating = threading.Thread(target=beat, daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join(timeout=1.0)
        give_back(file)


def give_back(file: Path) -> None:
    """Remove a lease, if it is that of this process."""
    holder = _parse(_read(file)[0])
    if holder is not None and holder.is_same_process(Holder.this_process()):
        file.unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Whether a lease exists and its process may be alive; of another machine: by the clock of this one."""
    watch = Watch(file)
    state = watch.look()
    if state != "quiet":
        return state == "held"
    with suppress(FileNotFoundError):
        return time.time() - file.stat().st_mtime < DEAD_AFTER_S
    return False


def _create(file: Path, me: Holder) -> bool:
    try:
        with open(file, "x") as handle:
            handle.write(json.dumps(asdict(me)) + "\n")
    except FileExistsError:
        return False
    return True


def _read(file: Path) -> tuple[str | None, int]:
    """The text of a lease, and when it was touched; None if there is none."""
    try:
        return file.read_text(errors="replace"), file.stat().st_mtime_ns
    except FileNotFoundError:
        return None, 0


def _parse(text: str | None) -> Holder | None:
    """Who holds a lease; None if its text is not complete."""
    try:
        return Holder(**json.loads(text or ""))
    except (ValueError, TypeError):
        return None
