"""Signals: a command that is asked to stop ends within seconds wherever it is, and a run is saved first.

Schedulers send SIGTERM or SIGUSR1 before they kill a job, a terminal sends SIGINT (Ctrl-C) or SIGHUP. A handler can
interrupt a write, a lock or a collective, so it neither saves nor communicates. It does one of three things:

- It raises `Interrupted` in the main thread: wherever there is nothing to finish first.
- Inside `deferred()`, and between `hold()` and `release()`, it sets a flag; the end of that part raises. A file is
  replaced and an optimiser step is done as a whole.
- On a rank other than the first it tells the first rank, which decides for all of them where to stop. A rank that the
  first rank's process has started ends with it.

A second Ctrl-C raises in any case. If the main thread does not end, because it waits in C code or because a library has
swallowed the exception, another thread ends the process after `GRACE_S` seconds.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
INTERRUPTED, ABORTED = 75, 130
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h (it can be resumed), 130 the shell's for Ctrl-C (nothing was kept)."""
GRACE_S = 10.0  # for what follows the exception: a logger closes, workers end
_DEAF_S, _POLL_S = 3.0, 0.1  # how long the main thread may stay in C code, where no handler runs
_RECORD_S = 1.0  # how long the end of the first rank may take to be recorded by another


class Interrupted(SystemExit):
    """A signal ends the command. No `except Exception` of a library catches it, and uncaught it ends the process.

    Args:
        code: the exit code.
        step: the optimiser step of `last.ckpt`, if this is a run that has one.
    """

    def __init__(self, code: int = INTERRUPTED, step: int | None = None) -> None:
        super().__init__(code)
        self.step = step


class Interruption:
    """What signals ask of this process.

    Attributes:
        is_requested: a signal asks the process to stop.
        is_aborted: a second Ctrl-C asks it to stop without saving.
        is_held: a signal waits for `release()`.
        is_resumable: what the command has done is kept, and can be resumed.
        pass_on: tells the first rank of a signal, on another rank, which does not stop by itself; else None.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._last_words: list[Callable[[], Any]] = []
        self._final_code: int | None = None
        self._reset()

    def _reset(self) -> None:
        self.is_requested = self.is_aborted = self.is_resumable = False
        self.pass_on: Callable[[], Any] | None = _tell_starter if _is_started_by_first_rank() else None
        self.is_held = self._is_ctrl_c = self._is_raised = False
        self._deferrals = 0

    @property
    def code(self) -> int:
        """The exit code of the command if it stops now."""
        return ABORTED if self.is_aborted or (self._is_ctrl_c and not self.is_resumable) else INTERRUPTED

    # -- listen ----------------------------------------------------------------------------------------------------

    def listen(self) -> bool:
        """Answer signals from now on; returns whether this call is the one that started it."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return False
        self._reset()
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # the interpreter writes each signal's number to this pipe even while the main thread is in C code
        self._writer_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._has_ended = threading.Event()
        threading.Thread(target=self._watch, args=(reader, self._has_ended), daemon=True, name="signals").start()
        if _is_started_by_first_rank():
            threading.Thread(target=_end_with_starter, args=(self._has_ended,), daemon=True, name="starter").start()
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                self._before[number] = signal.signal(number, self._on_signal)
        return True

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer signals inside the block. After it they are ignored where the process ends with the block."""
        is_new = self.listen()
        try:
            yield
        finally:
            if is_new:
                self._restore()
            elif self._before:
                for number in self._before:
                    signal.signal(number, signal.SIG_IGN)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._writer_before)
        self._has_ended.set()
        os.close(self._writer)
        self._before = {}
        self._reset()

    def ignore_in_worker(self) -> None:
        """In a forked worker: ignore what the whole process group receives; the parent ends its workers itself."""
        if self._before:
            signal.set_wakeup_fd(-1)  # the pipe is the parent's
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)
            self._before = {}

    # -- answer ----------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_second_ctrl_c = number == signal.SIGINT and self._is_ctrl_c
        self._is_ctrl_c |= number == signal.SIGINT
        self.is_requested = True
        if self.pass_on is not None:
            self.pass_on()
        elif is_second_ctrl_c:
            self.is_aborted = True
            self.stop()
        elif self.is_held or self._deferrals:
            if number == signal.SIGINT:  # not print: the signal may interrupt another print
                os.write(2, b"\nstopping as soon as this step is saved; Ctrl-C again stops at once\n")
        elif not self._is_raised:
            self.stop()

    def stop(self, step: int | None = None) -> NoReturn:
        """Raise `Interrupted`."""
        self.is_requested, self._is_raised, self.is_held = True, True, False
        raise Interrupted(self.code, step)

    def check(self) -> None:
        """Raise `Interrupted` if that is due, also if it was raised before and something swallowed it."""
        if self.is_requested and self.pass_on is None and not self.is_held and not self._deferrals:
            self.stop()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal during the block raises at its end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        if not self._is_raised:
            self.check()

    def end_process(self, code: int) -> None:
        """Let this process, whose command has ended, end with a code as soon as its exit functions have run.

        The interpreter would first collect all objects, which with torch takes seconds, on a busy machine many.
        """
        self._final_code = code

    def leave(self) -> None:
        """The last exit function of the process, because it is registered first."""
        if self._final_code is not None:
            with suppress(OSError, ValueError):  # nobody reads the output any more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(self._final_code)

    def hold(self) -> None:
        """From now on a signal waits for `release()`."""
        self.is_held = True

    def release(self) -> None:
        """End what `hold()` began, and raise if a signal came."""
        self.is_held = False
        if not self._is_raised:
            self.check()

    # -- the main thread does not answer ---------------------------------------------------------------------------

    @contextmanager
    def last_words(self, say: Callable[[], Any]) -> Iterator[None]:
        """If the process must be ended from outside the main thread during the block, do this first."""
        self._last_words.append(say)
        try:
            yield
        finally:
            self._last_words.remove(say)

    def _watch(self, reader: int, has_ended: threading.Event) -> None:
        """Wait for a signal; then end the process if the main thread has not done so in time."""
        with open(reader, "rb", buffering=0) as pipe:
            numbers = pipe.read(1)
            while numbers and numbers[0] not in SIGNALS:  # other signals, of which handlers of other libraries know
                numbers = pipe.read(1)
            waited = 0.0
            while numbers and not has_ended.wait(_POLL_S):
                if self.pass_on is None and not self.is_held and not self._deferrals:
                    waited += _POLL_S
                if waited >= (GRACE_S if self.is_requested else _DEAF_S):
                    self._end()

    def _end(self) -> None:
        import multiprocessing

        for say in reversed(self._last_words):
            with suppress(Exception):  # the disk may be full
                say()
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(self.code)


def _is_started_by_first_rank() -> bool:
    """Whether Lightning's launcher in the first rank's process has started this one; torchrun starts all alike."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def _tell_starter() -> None:
    os.kill(os.getppid(), signal.SIGTERM)


def _end_with_starter(has_ended: threading.Event) -> None:
    """End this rank when the process of the first rank has ended, which may leave it in a collective.

    In a run, `vitmae.runs.ranks` watches the first rank too, and records how it ended: so this waits for it.
    """
    starter = os.getppid()
    while not has_ended.wait(_POLL_S):
        if os.getppid() != starter:
            has_ended.wait(_RECORD_S)
            os._exit(INTERRUPTED)


interruption = Interruption()
"""That of this process: signals belong to a process, not to an object."""
atexit.register(interruption.leave)
os.register_at_fork(after_in_child=interruption.ignore_in_worker)
