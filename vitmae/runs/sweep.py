"""A sweep on disk: which command it belongs to, whether it is running, and one table of all its jobs.

    sweep.json       the command, and whether the sweep has finished
    .lock            locked while a process runs the sweep
    sweep.csv, .md   the table
    0-…/, 1-…/       the jobs, each the directory of a run

The same command resumes its newest sweep that has not finished: finished jobs are skipped, begun and failed ones resume
from their last checkpoint, the others start.
"""

import csv
import fcntl
import json
import os
from io import StringIO
from pathlib import Path
from typing import Any

from vitmae.atomic import atomic_write
from vitmae.errors import UserError
from vitmae.plain_files import read_json, read_yaml
from vitmae.runs.directory import read_summary, state_of
from vitmae.runs.reach import refuse_ways_out
from vitmae.tables import as_markdown, as_text

_RECORD = "sweep.json"
_OVERRIDES = Path(".hydra", "overrides.yaml")  # Hydra writes them as a job starts
_METRICS = {"val/loss": "val/loss", "val/acc1": "val/acc1", "probe/knn": "knn"}


class Sweep:
    """The sweep that this process runs; its directory stays locked until the process ends.

    Args:
        words: the command line after ``python -m vitmae.train``, as the user wrote it.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self._lock: int | None = None

    def find(self, runs: Path) -> Path | None:
        """Lock the newest sweep of the same words below `runs` that has not finished and is not running.

        Returns:
            Its directory; None if there is no such sweep.
        """
        records = sorted(runs.glob(f"**/{_RECORD}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for record in records:
            about = _read(record)
            if about.get("command") == self.words and not about.get("finished") and self._take(record.parent):
                refuse_ways_out(record.parent)
                return record.parent.resolve()
        return None

    def begin(self, directory: Path) -> None:
        """Lock the directory, and record the command that resumes the sweep.

        Raises:
            UserError: another process runs the sweep, or the directory holds the sweep of another command.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if not self._take(directory):
            raise UserError(f"{directory}: another process is running this sweep: wait, or stop it")
        earlier = _read(directory / _RECORD).get("command", self.words)
        if earlier != self.words:
            raise UserError(f"{directory} holds the sweep of another command: change hydra.sweep.dir")
        self._record(directory, finished=False)

    def end(self, directory: Path, finished: bool) -> None:
        """Record how the sweep ended; the next process may lock its directory."""
        if self._lock is not None:
            self._record(directory, finished)
            os.close(self._lock)
            self._lock = None

    def _record(self, directory: Path, finished: bool) -> None:
        with atomic_write(directory / _RECORD) as file:
            file.write(json.dumps({"command": self.words, "finished": finished}).encode())

    def _take(self, directory: Path) -> bool:
        """Lock a directory, unless another process has; on a file system without locks nothing is locked."""
        if self._lock is not None:  # by `find`
            return True
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        except OSError:
            pass
        self._lock = lock
        return True


def _read(record: Path) -> dict[str, Any]:
    """The content of a sweep's record; empty if there is none, or it is damaged."""
    try:
        return read_json(record)
    except UserError:
        return {}


def read_sweep(directory: Path) -> list[dict[str, str]]:
    """The jobs of a sweep in their order: the settings that differ between them, the final metrics, the state."""
    jobs = sorted((path.parent.parent for path in directory.glob(f"*/{_OVERRIDES}")), key=_number)
    overrides = [_overrides(job) for job in jobs]
    given_keys = dict.fromkeys(key for job in overrides for key in job)
    swept = [key for key in given_keys if len({job.get(key) for job in overrides}) > 1]
    rows = []
    for job, given in zip(jobs, overrides, strict=True):
        summary = read_summary(job)
        metrics = summary.get("metrics", {})
        row = {"job": job.name.split("-")[0], **{key: given.get(key, "") for key in swept or given}}
        row |= {column: f"{metrics[name]:.5g}" if name in metrics else "" for name, column in _METRICS.items()}
        rows.append(row | {"state": state_of(job), "error": summary.get("error", "")})
    return rows


def report_sweep(directory: Path) -> bool:
    """Write sweep.csv and sweep.md to a sweep's directory, print the table, and return whether all jobs finished."""
    rows = read_sweep(directory)
    if not rows:
        return True
    columns = [column for column in rows[0] if column not in ("error", "val/acc1") or any(row[column] for row in rows)]
    table = [columns, *([row[column] for column in columns] for row in rows)]
    lines = StringIO()
    csv.writer(lines, lineterminator="\n").writerows(table)
    for name, text in (("sweep.csv", lines.getvalue()), ("sweep.md", as_markdown(table))):
        with atomic_write(directory / name) as file:
            file.write(text.encode())
    print(f"{len(rows)} jobs in {directory}", as_text(table), sep="\n\n")
    return all(row["state"] == "finished" for row in rows)


def _number(job: Path) -> tuple[int, str]:
    """The sort key of a job's folder: the number at the start of its name."""
    number = job.name.split("-")[0]
    return (int(number) if number.isdigit() else 0, job.name)


def _overrides(job: Path) -> dict[str, str]:
    """Value by setting, as the job's command line gives them."""
    given = read_yaml(job / _OVERRIDES)
    return {key: value for key, _, value in (str(override).partition("=") for override in given)}
