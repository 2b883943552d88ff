"""Carry out a comparison's jobs, each in a process of its own: what is done is skipped, what was begun is gone on with.

    folder/runs/<job>/            the run's directory
    folder/evaluations/<job>.json
    folder/logs/<job>.log         what the job printed
    folder/logs/<job>.json        seconds it took, over all attempts

A job that fails does not stop the others; those that need it are left out. An interruption is handed to the job that
runs, which saves; the same command then goes on. A job outlives the comparison if that is killed: so the folder is
locked by both, and one who comes back early is told to wait instead of training the same run twice.
"""

import csv
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitmae.atomic import atomic_write
from vitmae.comparison.plan import Job, Row
from vitmae.errors import UserError
from vitmae.runs.directory import read_summary
from vitmae.runs.exit import INTERRUPTED, short

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The comparison was interrupted; what ran has been saved."""


def carry_out(rows: Sequence[Row], folder: Path, failures: dict[str, str]) -> Iterator[Row]:
    """Do what is not yet done, and yield each row when nothing is left to be done of it.

    Args:
        rows: the plan.
        folder: of the comparison.
        failures: filled in: of each job that fails, why, in one line, by the name of its place.

    Raises:
        Stopped: if a signal asked to stop.
        UserError: another process is at work in the folder.
    """
    count, total = 0, sum(len(_jobs(row)) + 1 for row in rows)
    with _Runner(folder, failures) as run:
        for row in rows:
            for job in _jobs(row):
                count += 1
                needed = _needed(row, job)
                if needed is None or is_done(needed):
                    run(job, f"[{count}/{total}]")
            count += 1
            if (best := chosen(row)) is not None:
                run(best, f"[{count}/{total}]")
            yield row


def _jobs(row: Row) -> list[Job]:
    """All but the evaluation on the test split, which is known when these are done."""
    return [job for job in (row.pretrain, *row.finetunes, row.probes) if job is not None]


def _needed(row: Row, job: Job) -> Job | None:
    """What has to be done before: the pre-training; from scratch, for probes, the run whose weights were fresh."""
    if row.pretrain is not None:
        return None if job is row.pretrain else row.pretrain
    return row.finetunes[0] if job is row.probes else None


def is_done(job: Job) -> bool:
    """Whether a job has left its result."""
    if job.module == "evaluate":
        return job.place.is_file()
    return read_summary(job.place).get("state") == "finished"


def chosen(row: Row) -> Job | None:
    """The evaluation of the fine-tuning that is best on the validation images; of equals the first; None before."""
    if not all(is_done(job) for job in row.finetunes):
        return None
    accuracies = [best_accuracy(job) for job in row.finetunes]
    return row.classifiers[accuracies.index(max(accuracies))]


def best_accuracy(finetune: Job) -> float:
    """The highest validation accuracy of a run: that of the checkpoint that is evaluated."""
    with open(finetune.place / "metrics.csv") as table:
        return max((float(line["val/acc1"]) for line in csv.DictReader(table) if line.get("val/acc1")), default=0.0)


def seconds_of(job: Job, folder: Path) -> float | None:
    """Wall time of a job over all attempts; None if it was never run."""
    try:
        return float(json.loads(_record(job, folder).read_text())["seconds"])
    except FileNotFoundError:
        return None


def _record(job: Job, folder: Path) -> Path:
    return folder / "logs" / f"{job.place.stem}-{job.module}.json"


class _Runner:
    """Runs one job after another, and hands signals on to the one that runs."""

    def __init__(self, folder: Path, failures: dict[str, str]) -> None:
        self.folder, self.failures = folder, failures
        self.is_asked_to_stop = False
        self.process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "_Runner":
        self.lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise UserError(
                f"out={self.folder}: a comparison is at work there, or a job that has outlived one: wait "
                "until it has ended, or end it"
            ) from None
        except OSError:  # a file system without locks
            _log.debug("%s cannot be locked", self.folder)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: object) -> None:
        self.is_asked_to_stop = True
        self._hand_on()

    def _hand_on(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def __call__(self, job: Job, place: str) -> None:
        if is_done(job):
            _log.info("%s %s: done before", place, job.name)
            return
        if self.is_asked_to_stop:  # between two jobs
            raise Stopped
        _log.info("%s %s", place, job.name)
        log = self.folder / "logs" / f"{job.place.stem}-{job.module}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with open(log, "ab") as output:
            # a session of its own: Ctrl-C in a terminal reaches this process alone, which hands it on once
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"vitmae.{job.module}", *_arguments(job)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(os.environ),
                pass_fds=[self.lock.fileno()],
            )
            if self.is_asked_to_stop:  # while it was being started
                self._hand_on()
            code = self.process.wait()
        _add_seconds(_record(job, self.folder), time.perf_counter() - start)
        if self.is_asked_to_stop or code == INTERRUPTED:
            raise Stopped
        if code != 0:
            self.failures[job.place.name] = _reason(log, code)
            _log.error("%s failed: %s (%s)", job.name, self.failures[job.place.name], short(log))


def _reason(log: Path, code: int) -> str:
    """Why a job failed: what it said last, unless it was killed and could say nothing."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + ", perhaps for want of memory" * (code == -signal.SIGKILL)
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"ended with {code}"


def _arguments(job: Job) -> list[str]:
    """The job's words; of a run that was begun, those that go on with it."""
    if job.module == "evaluate" or not job.place.exists():
        return job.arguments
    if (job.place / "checkpoints" / "last.ckpt").exists():
        return [f"ckpt={job.place}"]
    number = 1
    while (aside := job.place.with_name(f"{job.place.name}.stopped{number}")).exists():
        number += 1
    job.place.rename(aside)  # it had not come to its first checkpoint
    return job.arguments


def _add_seconds(path: Path, seconds: float) -> None:
    before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
    with atomic_write(path) as file:
        file.write(json.dumps({"seconds": before + seconds}).encode())
