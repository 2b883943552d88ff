"""Run the jobs of a comparison, each in its own process; skip finished jobs, resume interrupted training runs.

    folder/runs/<job>/            the run's directory
    folder/evaluations/<job>.json
    folder/logs/<job>-train.log   what the job printed; `-evaluate` for an evaluation
    folder/logs/<job>-train.json  its seconds, over all attempts

A job that fails does not stop the others, but jobs that need it are left out. A signal to stop is sent on to the
running job, which saves; the same command then resumes. If the comparison is killed, its job keeps running. So both
hold the lock of the folder, and another comparison in this folder is refused while one of them runs.
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
from typing import IO

from vitmae.atomic import atomic_write
from vitmae.comparison.plan import Job, Row
from vitmae.errors import UserError
from vitmae.evaluation.scores import read_scores
from vitmae.interruption import INTERRUPTED, Interrupted, interruption
from vitmae.runs.directory import read_summary
from vitmae.runs.exit import short

_log = logging.getLogger(__name__)


def run_jobs(rows: Sequence[Row], folder: Path, failures: dict[str, str]) -> Iterator[Row]:
    """Run the jobs that are not finished, and yield each row after its last job.

    Args:
        rows: the plan.
        folder: the folder of the comparison.
        failures: is filled in: the name of a failed job's place -> the reason in one line.

    Raises:
        Interrupted: the process received a signal to stop; the job that was running has saved.
        UserError: another comparison is running in the folder.
    """
    count, total = 0, sum(len(_jobs(row)) + 1 for row in rows)
    with _Runner(folder, failures) as run:
        for row in rows:
            for job in _jobs(row):
                count += 1
                first = _prerequisite(row, job)
                if first is None or is_done(first):
                    run(job, f"[{count}/{total}]")
            count += 1
            if (best := best_classifier(row)) is not None:
                run(best, f"[{count}/{total}]")
            yield row


def _jobs(row: Row) -> list[Job]:
    """All jobs of a row except the evaluation on the test split: which one that is depends on these."""
    return [job for job in (row.pretrain, *row.finetunes, row.probes) if job is not None]


def _prerequisite(row: Row, job: Job) -> Job | None:
    """The job that must finish before: the pre-training; from scratch, the run whose untrained encoder is probed."""
    if row.pretrain is not None:
        return None if job is row.pretrain else row.pretrain
    return row.finetunes[0] if job is row.probes else None


def is_done(job: Job) -> bool:
    """Whether a job is finished; an evaluation whose file is damaged, or is of another run, is not."""
    if job.command_name == "train":
        return read_summary(job.place).get("state") == "finished"
    if not job.place.is_file():
        return False
    try:
        about = read_scores(job.place)[1]
    except UserError as error:  # the file is damaged
        _log.warning("%s", error)
        return False
    # the run may have been deleted and trained again; earlier versions did not write its id
    return about.get("run") in (None, read_summary(job.evaluated_run).get("id"))


def best_classifier(row: Row) -> Job | None:
    """The evaluation of the best fine-tuning on validation images, the first of equals; None until all are finished."""
    if not all(is_done(job) for job in row.finetunes):
        return None
    accuracies = [best_accuracy(job) for job in row.finetunes]
    return row.classifiers[accuracies.index(max(accuracies))]


def best_accuracy(finetune: Job) -> float:
    """The highest validation accuracy of a run, in [0, 1]; it is that of its `best.ckpt`."""
    with open(finetune.place / "metrics.csv") as table:
        return max((float(line["val/acc1"]) for line in csv.DictReader(table) if line.get("val/acc1")), default=0.0)


def seconds_of(job: Job, folder: Path) -> float | None:
    """The wall time of a job in seconds, over all attempts; None if it never ran."""
    try:
        return float(json.loads(_record(job, folder).read_text())["seconds"])
    except FileNotFoundError:
        return None


def _record(job: Job, folder: Path) -> Path:
    return folder / "logs" / f"{job.place.name.removesuffix('.json')}-{job.command_name}.json"


class _Runner:
    """Runs one job after another, and sends a signal to stop on to the running job."""

    def __init__(self, folder: Path, failures: dict[str, str]) -> None:
        self.folder, self.failures = folder, failures

    def __enter__(self) -> "_Runner":
        self.lock = open(self.folder / ".lock", "a+")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            process = self.lock.read()
            self.lock.close()
            raise UserError(
                f"out={self.folder}: a comparison or one of its jobs is still running there: wait, or stop it: "
                f"kill {process}"
            ) from None
        except OSError:  # a file system without locks
            _log.debug("%s cannot be locked", self.folder)
        self._name_process(os.getpid())
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.close()

    def _name_process(self, process: int) -> None:
        """Write into the lock which process holds it."""
        self.lock.truncate(0)
        self.lock.write(str(process))
        self.lock.flush()

    def __call__(self, job: Job, place: str) -> None:
        if is_done(job):
            _log.info("%s %s: already finished", place, job.name)
            return
        _log.info("%s %s", place, job.name)
        log = _record(job, self.folder).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with open(log, "ab") as output:
            code = self._code_of([sys.executable, "-m", f"vitmae.{job.command_name}", *_arguments(job)], output)
        self._name_process(os.getpid())
        _add_seconds(_record(job, self.folder), time.perf_counter() - start)
        if code == INTERRUPTED:
            interruption.stop()
        if code != 0:
            self.failures[job.place.name] = _reason(log, code)
            _log.error("%s failed: %s (%s)", job.name, self.failures[job.place.name], short(log))

    def _code_of(self, command: list[str], output: IO[bytes]) -> int:
        """The exit code of a job; an interruption is sent on to it, and it is waited for."""
        process = None
        try:
            with interruption.deferred():
                # a new session: Ctrl-C in a terminal reaches only this process, which sends it on once
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[self.lock.fileno()],
                )
                self._name_process(process.pid)  # it outlives this process if that is killed
            return process.wait()
        except Interrupted:
            if process is None:
                raise
            process.terminate()
            with interruption.deferred():
                process.wait()
            return INTERRUPTED


def _reason(log: Path, code: int) -> str:
    """Why a job failed: the last line of its log, or the signal that killed it."""
    if code < 0:
        cause = ", perhaps out of memory" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{cause}"
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def _arguments(job: Job) -> list[str]:
    """The arguments of a job; for a run with a checkpoint, `ckpt=` and where its own code is."""
    if job.command_name == "evaluate" or not job.place.exists():
        return job.arguments
    if (job.place / "checkpoints" / "last.ckpt").exists():
        keys = {override: override.lstrip("+").partition("=")[0] for override in job.overrides}
        reaching = [word.lstrip("+") for word, key in keys.items() if key.endswith(".entity") or key[:8] == "trainer."]
        return [*job.own_code, f"ckpt={job.place}", *reaching]  # see vitmae.runs.reach
    number = 1
    while (aside := job.place.with_name(f"{job.place.name}.stopped{number}")).exists():
        number += 1
    job.place.rename(aside)  # it was interrupted before its first checkpoint
    return job.arguments


def _add_seconds(path: Path, seconds: float) -> None:
    before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
    with atomic_write(path) as file:
        file.write(json.dumps({"seconds": before + seconds}).encode())
